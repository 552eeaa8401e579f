// The map: land and towns, quicklooks at their footprints, footprints coloured by percentile, one numbered pin a result.
import * as maplibregl from "./vendor/maplibre-gl/maplibre-gl.mjs";
import outline from "./vendor/topojson-client/src/feature.js";
import mesh from "./vendor/topojson-client/src/mesh.js";

const QUICKLOOKS = 1200; // images drawn at a time; more places in view are drawn as squares
const DIM = 0.45; // opacity of quicklooks outside the results
const PINS = 50;
const DOT_PX = 5; // a narrower footprint is drawn as a dot
const QUICKLOOK_PX = 14; // a wider one shows its quicklook; between the two it is a square of one colour
const NEAR_PX = 60; // a wider footprint has its pin in the corner
const LATITUDES = [-80, 84]; // limits of UTM, beyond which there is no place
const LOOK_PX = 120; // a wider footprint is large enough to look at, without zooming in
const OPEN_PX = 24; // width of a footprint that the page opens with at least
const CREDITS = { land: "Natural Earth", towns: "GeoNames, CC BY 4.0" };
const TOWNS = 24; // names of towns asked for at a time
const TOWN_ZOOM = 11; // zoom on a town that a person goes to: some 20 km
// Viridis. The best results of a large dataset differ only in decimals, so the steps narrow towards 100 %.
export const STEPS = [
  { from: 99.9, colour: "#fde725", label: "99.9 %", radius: 7 },
  { from: 99, colour: "#7ad151", label: "99 %", radius: 6 },
  { from: 90, colour: "#22a884", label: "90 %", radius: 5 },
  { from: 50, colour: "#2a788e", label: "50 %", radius: 3.5 },
  { from: 0, colour: "#440154", label: "less", radius: 2 },
];
const inkOn = (colour) => (["#fde725", "#7ad151", "#22a884"].includes(colour) ? "#10151a" : "#ffffff");

export const thumbnail = (id) => `api/thumbnail/${encodeURIComponent(id)}`;
const stepOf = (percentile) => STEPS.find((step) => percentile >= step.from);
export const colourOf = (percentile) => stepOf(percentile).colour;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const none = { type: "FeatureCollection", features: [] };
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

function feature(place) {
  const ring = [...place.footprint, place.footprint[0]];
  const properties = { id: place.unique_id, colour: colourOf(place.percentile) };
  return { type: "Feature", geometry: { type: "Polygon", coordinates: [ring] }, properties };
}

function dot(place) {
  const { colour, radius } = stepOf(place.percentile);
  const properties = { id: place.unique_id, percentile: place.percentile, colour, radius };
  return { type: "Feature", geometry: { type: "Point", coordinates: [place.lon, place.lat] }, properties };
}

// A box is west, south, east, north in degrees; west > east where it crosses 180°.
const wrap = (lon) => (lon >= -180 && lon <= 180 ? lon : ((((lon + 180) % 360) + 360) % 360) - 180);
const onward = ([west, south, east, north]) => [west, south, west > east ? east + 360 : east, north];
const near = (lon, other) => lon + 360 * Math.round((other - lon) / 360);

// The part that two boxes share; null where they share none.
export function inside(one, other) {
  const [a, b] = [onward(one), onward(other)];
  const [south, north] = [Math.max(a[1], b[1]), Math.min(a[3], b[3])];
  for (const turn of [0, -360, 360]) {
    const [west, east] = [Math.max(a[0], b[0] + turn), Math.min(a[2], b[2] + turn)];
    if (west < east && south < north) return [wrap(west), south, wrap(east), north];
  }
  return null;
}

// An outline across 180° as one shape, whose longitudes run on; around a pole it is closed along the map's edge.
function unrolled(ring) {
  const lons = ring.slice(0, 1).map(([lon]) => lon);
  for (const [lon] of ring.slice(1)) lons.push(near(lon, lons.at(-1)));
  const shift = 360 * Math.round((Math.min(...lons) + Math.max(...lons)) / 720);
  const points = ring.map(([, lat], i) => [lons[i] - shift, lat]);
  const [first, last] = [points[0][0], points.at(-1)[0]];
  return Math.abs(last - first) < 1 ? points : [...points, [last, -90], [first, -90], points[0]];
}

function ringOf(box) {
  const [west, south, east, north] = onward(box);
  return { type: "Polygon", coordinates: [[[west, south], [east, south], [east, north], [west, north], [west, south]]] };
}

export class PlaceMap {
  constructor(container, { basemap, onPick, onMove, onBasemap }) {
    this.quicklooks = new Map();
    this.pins = [];
    this.hits = [];
    this.places = [];
    this.scored = false;
    this.named = 0; // number of the last request for towns
    this.thumbnails = true; // false for a dataset without thumbnails
    const colour = (property) => ["get", property];
    this.map = new maplibregl.Map({
      container,
      style: {
        version: 8,
        sources: Object.fromEntries(["land", "borders", "places", "dots", "hits", "area", "picked", "towns"].map((n) => [n, { type: "geojson", data: none, attribution: CREDITS[n] }])),
        layers: [
          { id: "background", type: "background" },
          { id: "land", type: "fill", source: "land" },
          { id: "borders", type: "line", source: "borders", maxzoom: 11 },
          { id: "squares", type: "fill", source: "places", paint: { "fill-opacity": 0.9 } },
          { id: "places", type: "line", source: "places", paint: { "line-color": css("--map-line"), "line-width": 1 } },
          { id: "dots", type: "circle", source: "dots", layout: { "circle-sort-key": ["get", "percentile"] }, paint: { "circle-stroke-width": 0.5 } },
          { id: "places-area", type: "fill", source: "places", paint: { "fill-opacity": 0 } }, // takes the clicks
          { id: "hits-halo", type: "line", source: "hits", paint: { "line-color": "#10151a", "line-width": 5 } },
          { id: "hits", type: "line", source: "hits", paint: { "line-color": colour("colour"), "line-width": 3 } },
          { id: "towns", type: "symbol", source: "towns", layout: {
            "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 12, "symbol-sort-key": ["get", "order"], "text-padding": 6 },
            paint: { "text-halo-width": 1.5 } },
          { id: "area", type: "line", source: "area", paint: { "line-color": css("--accent"), "line-width": 2, "line-dasharray": [3, 2] } },
          { id: "picked", type: "line", source: "picked", paint: { "line-color": "#ff3da5", "line-width": 4 } },
        ],
      },
      center: [10, 48],
      zoom: 3,
      maxZoom: 17,
      dragRotate: false,
      attributionControl: { compact: true },
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-right");
    this.map.addControl(new maplibregl.ScaleControl(), "bottom-left");
    this.ready = new Promise((resolve) => this.map.once("load", resolve));
    for (const layer of ["places-area", "dots"]) {
      this.map.on("click", layer, (event) => onPick(event.features[0].properties.id));
      this.map.on("mouseenter", layer, () => (this.map.getCanvas().style.cursor = "pointer"));
      this.map.on("mouseleave", layer, () => (this.map.getCanvas().style.cursor = ""));
    }
    this.map.on("moveend", () => { this.#settle(); this.#draw(); this.#nameTowns(); onMove(); });
    this.map.on("error", (event) => (event.sourceId === "basemap" ? onBasemap(false) : console.error(event.error)));
    this.map.on("data", (event) => event.sourceId === "basemap" && event.tile?.state === "loaded" && onBasemap(true));
    this.ready.then(() => { this.#paint(); this.#drawLand(); });
    const busy = (state) => () => this.map.getContainer().parentElement.setAttribute("aria-busy", state);
    for (const event of ["movestart", "dataloading"]) this.map.on(event, busy(true));
    this.map.on("idle", busy(false));
    this.basemap = basemap;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
  }

  #paint() {
    // coastlines for 1:50 million mislead further in: there the sea fades into the land
    this.map.setPaintProperty("background", "background-color", ["interpolate", ["linear"], ["zoom"], 8, css("--sea"), 10, css("--map")]);
    this.map.setPaintProperty("land", "fill-color", css("--map"));
    this.map.setPaintProperty("borders", "line-color", css("--quiet"));
    this.map.setPaintProperty("borders", "line-opacity", 0.6);
    this.map.setPaintProperty("towns", "text-color", css("--ink"));
    this.map.setPaintProperty("towns", "text-halo-color", css("--paper"));
    const either = (property, otherwise) => (this.scored ? ["get", property] : otherwise);
    this.map.setPaintProperty("places", "line-color", either("colour", css("--map-line")));
    this.map.setPaintProperty("squares", "fill-color", either("colour", css("--map-line")));
    this.map.setPaintProperty("squares", "fill-outline-color", css("--map"));
    this.map.setPaintProperty("dots", "circle-color", either("colour", css("--quiet")));
    this.map.setPaintProperty("dots", "circle-radius", either("radius", 4));
    this.map.setPaintProperty("dots", "circle-stroke-color", css("--map"));
    this.map.setPaintProperty("area", "line-color", css("--accent"));
  }

  async #drawLand() {
    const world = await fetch("vendor/world-atlas/countries-50m.json").then((response) => response.json()).catch(() => null);
    if (!world) return; // the page was built without it
    const land = outline(world, world.objects.land).features;
    const polygons = land.flatMap(({ geometry }) => geometry.coordinates).map((rings) => rings.map(unrolled));
    this.map.getSource("land").setData({ type: "Feature", geometry: { type: "MultiPolygon", coordinates: polygons }, properties: {} });
    this.map.getSource("borders").setData({ type: "Feature", geometry: mesh(world, world.objects.countries, (a, b) => a !== b), properties: {} });
  }

  // Write the names of the largest towns in view.
  async #nameTowns() {
    const number = ++this.named;
    const found = await fetch(`api/gazetteer?bbox=${this.bounds.join(",")}&limit=${TOWNS}`).then((response) => response.json()).catch(() => ({}));
    if (number !== this.named) return; // the map has moved on
    const point = ({ name, lon, lat }, order) => ({ type: "Feature", geometry: { type: "Point", coordinates: [lon, lat] }, properties: { name, order } });
    this.map.getSource("towns").setData({ type: "FeatureCollection", features: (found.towns ?? []).map(point) });
  }

  get bounds() {
    const b = this.map.getBounds();
    const clip = (value, least, most) => Number(Math.max(least, Math.min(most, value)).toFixed(5));
    const [south, north] = [b.getSouth(), b.getNorth()].map((value) => clip(value, ...LATITUDES));
    const [west, east] = [b.getWest(), b.getEast()];
    if (east - west > 180) return [-180, south, 180, north]; // the world: a box across 180° has half of it at most
    return [wrap(Number(west.toFixed(5))), south, wrap(Number(east.toFixed(5))), north];
  }

  onPointer(tell) {
    this.map.on("mousemove", ({ lngLat }) => tell(`${lngLat.lat.toFixed(4)}, ${lngLat.wrap().lng.toFixed(4)}`));
    this.map.on("mouseout", () => tell(""));
  }

  showBasemap(on) {
    if (on && !this.map.getSource("basemap")) {
      const attribution = '© <a href="https://www.openstreetmap.org/copyright">OpenStreetMap</a> contributors';
      this.map.addSource("basemap", { type: "raster", tiles: [`${this.basemap}/{z}/{x}/{y}.png`], tileSize: 256, maxzoom: 19, attribution });
      this.map.addLayer({ id: "basemap", type: "raster", source: "basemap", paint: { "raster-opacity": 0.75 } }, "squares");
    }
    if (this.map.getLayer("basemap")) this.map.setLayoutProperty("basemap", "visibility", on ? "visible" : "none");
  }

  // Draw the places around the results; with `scored`, each in the colour of its percentile.
  setPlaces(places, scored) {
    this.places = places;
    this.scored = scored;
    this.#draw();
    this.#paint();
    this.map.getSource("places").setData({ type: "FeatureCollection", features: places.map(feature) });
    this.map.getSource("dots").setData({ type: "FeatureCollection", features: places.map(dot) });
    if (!places.length) return;
    const [[west], , [east]] = places[0].footprint;
    const zoomAt = (px) => Math.max(0, Math.min(24, Math.log2((px * 360) / (512 * Math.abs(east - west)))));
    this.map.setLayerZoomRange("dots", 0, zoomAt(DOT_PX));
    this.map.setLayerZoomRange("squares", zoomAt(DOT_PX), 24);
    this.map.setLayerZoomRange("places", this.thumbnails ? zoomAt(QUICKLOOK_PX) : 24, 24);
  }

  setArea(bbox) {
    this.map.getSource("area").setData(bbox ? ringOf(bbox) : none);
  }

  // Draw the results, best first: coloured and numbered, with their quicklooks.
  setHits(hits, onPick) {
    this.hits = hits;
    const features = hits.map(feature).reverse(); // the best on top
    this.map.getSource("hits").setData({ type: "FeatureCollection", features });
    this.pins.forEach(({ marker }) => marker.remove());
    this.pins = hits.slice(0, PINS).map((hit) => {
      const element = document.createElement("button");
      const colour = colourOf(hit.percentile);
      element.className = "pin";
      element.type = "button";
      element.tabIndex = -1; // the keyboard uses the list
      element.textContent = hit.rank;
      element.style.background = colour;
      element.style.color = inkOn(colour);
      element.style.zIndex = PINS - hit.rank;
      element.setAttribute("aria-label", `Result ${hit.rank}`);
      element.addEventListener("click", (event) => { event.stopPropagation(); onPick(hit.unique_id); });
      const marker = new maplibregl.Marker({ element }).setLngLat([hit.lon, hit.lat]).addTo(this.map);
      return { marker, hit };
    });
    this.#draw();
    this.#settle();
  }

  // Draw quicklooks at their footprints, results bright and others dim; remove those out of view.
  #draw() {
    if (!this.map.getLayer("squares")) return; // the style is not loaded yet
    const wanted = this.#wanted();
    const bright = new Set(this.hits.map((hit) => hit.unique_id));
    for (const [id, name] of this.quicklooks) {
      if (wanted.has(id)) continue;
      this.map.removeLayer(name);
      this.map.removeSource(name);
      this.quicklooks.delete(id);
    }
    for (const [id, place] of wanted) {
      const name = `quicklook-${id}`;
      const opacity = bright.has(id) || !this.hits.length ? 1 : DIM;
      if (this.quicklooks.has(id)) {
        this.map.setPaintProperty(name, "raster-opacity", opacity);
        continue;
      }
      const url = thumbnail(id);
      this.map.addSource(name, { type: "image", url, coordinates: place.footprint });
      this.map.addLayer({ id: name, type: "raster", source: name, paint: { "raster-fade-duration": 0, "raster-opacity": opacity } }, "places");
      this.quicklooks.set(id, name);
    }
  }

  // Return the places whose quicklooks are drawn: all in view, or if they are too many, the results or the central ones.
  #wanted() {
    const inView = (places) => places.filter((place) => this.#inView(place));
    const large = (places) => (this.thumbnails ? places.filter((place) => this.#width(place) > QUICKLOOK_PX) : []);
    const [hits, seen] = [large(inView(this.hits)), inView(this.places)];
    const around = large(seen);
    const every = around.length > 0 && around.length <= QUICKLOOKS;
    this.map.setLayoutProperty("squares", "visibility", every && around.length === seen.length ? "none" : "visible");
    const some = every ? around : this.scored ? [] : this.#nearest(around).slice(0, QUICKLOOKS - hits.length);
    return new Map([...hits, ...some].map((place) => [place.unique_id, place]));
  }

  #nearest(places) {
    const centre = this.map.getCenter();
    const far = ({ lon, lat }) => Math.hypot((lon - centre.lng) * Math.cos((centre.lat * Math.PI) / 180), lat - centre.lat);
    return [...places].sort((a, b) => far(a) - far(b));
  }

  #width(place) {
    const [a, b] = [place.footprint[0], place.footprint[1]].map((corner) => this.map.project(corner));
    return Math.hypot(a.x - b.x, a.y - b.y);
  }

  #inView({ footprint: [[left, top], , [right, bottom]] }) {
    return inside(this.bounds, [wrap(left), bottom, wrap(right), top]) !== null;
  }

  // Put each pin on its place, or in the corner of a place that is large enough to look at.
  #settle() {
    for (const { marker, hit } of this.pins) {
      const near = this.#width(hit) > NEAR_PX;
      marker.setLngLat(near ? hit.footprint[0] : [hit.lon, hit.lat]).setOffset(near ? [18, 18] : [0, 0]);
    }
  }

  shows(places) {
    return places.some((place) => this.#inView(place));
  }

  fit(places, bounds) {
    const extent = bounds ? onward(bounds) : [];
    const found = places.length ? places.flatMap((place) => place.footprint) : [extent.slice(0, 2), extent.slice(2)];
    if (!found[0].length) return;
    const corners = places.length ? found.map(([lon, lat]) => [near(lon, found[0][0]), lat]) : found;
    const box = corners.reduce((b, corner) => b.extend(corner), new maplibregl.LngLatBounds(corners[0], corners[0]));
    this.map.fitBounds(box, { padding: 60, maxZoom: 14, animate: !still, duration: 600 });
  }

  // Show the part of a dataset where its places are.
  open(bounds) {
    if (!bounds) return;
    const [west, south, east, north] = onward(bounds);
    this.map.fitBounds([[west, south], [east, north]], { padding: 40, maxZoom: 14, animate: false });
  }

  // Zoom in until quicklooks can be seen, on the place in the middle.
  approach() {
    const [middle] = this.#nearest(this.places);
    const zoom = middle && Math.log2(OPEN_PX / this.#width(middle));
    if (zoom > 0) this.map.jumpTo({ center: [middle.lon, middle.lat], zoom: this.map.getZoom() + zoom });
  }

  // Go to a point, and mark it.
  goTo({ lon, lat }, zoom = TOWN_ZOOM) {
    this.target?.remove();
    const element = Object.assign(document.createElement("div"), { className: "target" });
    this.target = new maplibregl.Marker({ element }).setLngLat([lon, lat]).addTo(this.map);
    this.map.jumpTo({ center: [lon, lat], zoom });
  }

  // Outline a place, pan to it if it is out of view, and open its popup.
  pick(place, content) {
    this.popup?.remove();
    this.map.getSource("picked").setData(place ? feature(place) : none);
    if (!place) return;
    if (!this.#inView(place)) this.map.easeTo({ center: [place.lon, place.lat], animate: !still });
    const [[left, top], [right]] = place.footprint;
    this.popup = new maplibregl.Popup({ offset: 10, focusAfterOpen: false, maxWidth: "320px" })
      .setLngLat([(left + right) / 2, top]).setDOMContent(content).addTo(this.map);
  }

  // Zoom in until the place and its neighbours can be seen.
  zoomTo(place) {
    const [northWest, , southEast] = place.footprint;
    if (this.#width(place) > LOOK_PX) return this.map.easeTo({ center: [place.lon, place.lat], animate: !still });
    const [dx, dy] = [southEast[0] - northWest[0], northWest[1] - southEast[1]];
    const box = [[place.lon - 2 * dx, place.lat - 2 * dy], [place.lon + 2 * dx, place.lat + 2 * dy]];
    return this.map.fitBounds(box, { animate: !still, duration: 600 });
  }
}
