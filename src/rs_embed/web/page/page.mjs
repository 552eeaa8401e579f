// The page. The query is kept in the address, so that a link shows the same results; everything else follows from it.
const $ = (id) => document.getElementById(id);
const library = await import("./map.mjs").catch((error) => {
  $("about").textContent = "Files of this page are missing: its map comes with a wheel, or with an installation that has a network.";
  throw error;
});
const { PlaceMap, STEPS, colourOf, inside, thumbnail } = library;

const ALL_AT_ONCE = 6000; // places drawn at once; of a larger dataset only those in view
const PROBLEMS_EVERY_MS = 15000; // the dataset may lose files or come back while the page is open
const MARKS = 50; // limit a side, the same as the server's
const LISTS = ["id", "unlike"];
const WORDS = ["text", "negative", "start", "end", "concept", "bbox", "k"];

let facts; // response of /api/dataset
let map;
let shown = new Map(); // places received so far, by unique_id
let hits = [];
let picked = null;
let asked = 0; // number of the last request: older responses are dropped
let looked = 0; // the same for requests of surrounding places
let lit; // the query by which all places are coloured
let suggestions; // promise of words that occur in the dataset

// ---- query and address

function readAddress() {
  const params = new URLSearchParams(location.search);
  return { ...Object.fromEntries(WORDS.map((n) => [n, params.get(n) ?? ""])), ...Object.fromEntries(LISTS.map((n) => [n, params.getAll(n)])) };
}

function toParams(query) {
  const params = new URLSearchParams();
  for (const name of WORDS) if (query[name] && !(name === "k" && query[name] === "20")) params.set(name, query[name]);
  for (const name of LISTS) for (const value of query[name]) params.append(name, value);
  return params;
}

function go(changes, { keepView = false } = {}) {
  const params = toParams({ ...readAddress(), ...changes });
  history.pushState(null, "", `${location.pathname}${params.size ? `?${params}` : ""}`);
  return answer({ keepView });
}

// The API needs both ends of a time range: a missing one is taken from the dataset.
function toRequest(query) {
  const params = toParams(query);
  if (query.start || query.end) {
    const [first, last] = facts.time ?? ["2015-01-01", "2100-01-01"];
    params.set("start", query.start || (first < query.end ? first : "2015-01-01"));
    params.set("end", query.end || (last > query.start ? last : "2100-01-01"));
  }
  return params;
}

const NOTHING = { ...Object.fromEntries(WORDS.map((n) => [n, ""])), ...Object.fromEntries(LISTS.map((n) => [n, []])) };
const isQuestion = (query) => query.text || query.concept || query.id.length;

async function get(path, options) {
  const response = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer: is rs-embed serve still running?");
  });
  const body = await response.json().catch(() => ({ detail: `The server failed (${response.status}): its terminal says why.` }));
  if (response.ok) return body;
  throw new Error(Array.isArray(body.detail) ? body.detail.map((d) => `${d.loc?.at(-1) ?? ""}: ${d.msg}`).join("; ") : body.detail);
}

async function answer({ keepView = false } = {}) {
  const query = readAddress();
  const number = ++asked;
  $("suggestions").hidden = true;
  fillForm(query);
  chips(query);
  $("learn").hidden = !(query.id.length && query.unlike.length);
  $("panel").setAttribute("aria-busy", "true");
  await map.ready;
  map.setArea(query.bbox ? query.bbox.split(",").map(Number) : null);
  pick(null);
  say("");
  tell("");
  const params = toRequest(query);
  $("head").hidden = !isQuestion(query);
  try {
    if (!isQuestion(query)) return await showAll(query, keepView, number);
    $("count").textContent = "Searching …";
    const found = await get(`api/search?${params}`);
    if (number !== asked) return;
    hits = found.results;
    hits.forEach((hit) => shown.set(hit.unique_id, hit));
    $("count").textContent = `${hits.length} of ${found.searched.toLocaleString("en")}${found.exact ? "" : ` (recall ${found.recall})`}`;
    for (const kind of ["csv", "geojson"]) Object.assign($(kind), { href: `api/search.${kind}?${params}`, hidden: !hits.length });
    say(found.notice ?? "");
    list(hits, found.searched);
    map.setHits(hits, pick);
    if (!keepView || !map.shows(hits)) map.fit(hits, facts.extent);
    await surroundings(query);
  } catch (error) {
    if (number !== asked) return;
    hits = [];
    $("head").hidden = true;
    list([]);
    map.setHits([], pick);
    say(error.message);
    await surroundings();
  } finally {
    if (number === asked) $("panel").setAttribute("aria-busy", "false");
  }
}

// Without a query: show the dataset itself.
async function showAll(query, keepView, number) {
  hits = [];
  list([]);
  map.setHits([], pick);
  const opens = !keepView && !query.bbox;
  if (opens) map.open(facts.dense_extent);
  else if (!keepView) map.fit([], query.bbox.split(",").map(Number));
  const places = await surroundings({ ...NOTHING, start: query.start, end: query.end, bbox: query.bbox });
  if (number !== asked) return;
  if (opens) map.approach();
  suggest(number);
  if (!facts.rows) say("This dataset has no rows yet.", true);
  else if (query.negative || query.unlike.length) say("Say what it should look like first, then what it should not.");
  else if (!places.length) say("No place is left by these filters.");
  else say("Ask in words, or click a place and ask for more like it.", true);
}

// Draw footprints to click on, coloured by the query: all of a small dataset, those in view of a large one.
async function surroundings(question = NOTHING) {
  lit = question;
  const number = ++looked;
  const params = toRequest({ ...question, k: "" });
  const view = facts.rows > ALL_AT_ONCE ? map.bounds : null;
  const area = question.bbox && !isQuestion(question) ? question.bbox.split(",").map(Number) : null;
  const box = view && area ? inside(view, area) : view ?? area;
  params.delete("bbox");
  if (box) params.set("bbox", box.join(","));
  params.set("spread", "true");
  params.set("limit", ALL_AT_ONCE);
  const empty = view && area && !box;
  const found = empty ? { results: [], searched: 0 } : await get(`api/places?${params}`).catch((error) => {
    say(error.message); // the results stay: only the places around them are missing
    return { results: [], searched: 0 };
  });
  if (number !== looked) return [];
  const drawn = found.results;
  drawn.forEach((place) => shown.has(place.unique_id) || shown.set(place.unique_id, place));
  const scored = Boolean(isQuestion(question) && drawn.length);
  map.setPlaces(drawn, scored);
  legend(scored, drawn.length < found.searched ? `${drawn.length.toLocaleString("en")} of ${found.searched.toLocaleString("en")} places here drawn: zoom in for all` : "");
  return drawn;
}

// ---- marks

function mark(id, side) {
  const query = readAddress();
  if (query[side].length >= MARKS && !query[side].includes(id)) return say(`${MARKS} marks a side are enough: take some away first.`);
  const other = side === "id" ? "unlike" : "id";
  const changes = { [side]: [...new Set([...query[side], id])], [other]: query[other].filter((n) => n !== id), concept: "" };
  const fromList = $("results").contains(document.activeElement);
  return go(changes, { keepView: true }).then(() => fromList && $("results").querySelector(".place")?.focus());
}

function markButtons(place) {
  const line = make("div", { className: "marks" });
  for (const [side, label] of [["id", "More like this"], ["unlike", "Not this"]]) {
    const button = make("button", { type: "button", textContent: label });
    const alone = side === "unlike" && !isQuestion(readAddress());
    if (alone) { button.disabled = true; button.title = "Search first: there is nothing to tell this place from"; }
    button.addEventListener("click", (event) => { event.stopPropagation(); mark(place.unique_id, side); });
    line.append(button);
  }
  return line;
}

// ---- list, chips, legend and popup

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const where = (place) => `${place.lat.toFixed(4)}, ${place.lon.toFixed(4)}`;

// The time range of a place: months where it is made of whole ones. Its end is the day after the last.
function days({ start, end }) {
  const last = new Date(Date.parse(end) - 86400000);
  if (!start.endsWith("-01") || !end.endsWith("-01")) return `${start} to ${last.toISOString().slice(0, 10)}`;
  return months.formatRange(new Date(start), last);
}
const months = new Intl.DateTimeFormat("en", { month: "short", year: "numeric", timeZone: "UTC" });

const picture = (id, more = {}) => {
  if (!facts.thumbnails) return [];
  const image = make("img", { src: thumbnail(id), alt: "", ...more });
  image.addEventListener("error", () => image.remove()); // a place without a quicklook
  return [image];
};

function say(text, plain = false) {
  $("notice").textContent = text;
  $("notice").className = plain ? "plain" : "";
}

function list(results, searched = 0) {
  $("results").replaceChildren(...results.map((hit) => {
    const likely = hit.probability === null ? "" : `${Math.round(100 * hit.probability)} % likely`;
    const better = searched > 1 ? `above ${hit.percentile.toFixed(hit.percentile > 99 ? 2 : 0)} % of places` : "";
    const bar = make("div", { className: "bar" }, make("i"));
    bar.firstChild.style.width = `${hit.probability === null ? hit.percentile : 100 * hit.probability}%`;
    bar.firstChild.style.background = colourOf(hit.percentile);
    const name = hit.near ?? where(hit);
    const place = make("button", { type: "button", className: "place" }, make("span", { className: "rank", textContent: hit.rank }), name);
    place.setAttribute("aria-label", `Result ${hit.rank}, ${name}${likely && `, ${likely}`}`);
    const card = make("div", { className: "card" },
      place,
      bar,
      make("p", { textContent: [likely, better].filter(Boolean).join(" · ") }),
      make("p", { textContent: `${hit.near ? `${where(hit)} · ` : ""}${days(hit)}` }),
      make("p", { className: "id", textContent: hit.id }),
      markButtons(hit));
    const item = make("li", {}, ...picture(hit.unique_id, { loading: "lazy" }), card);
    item.dataset.id = hit.unique_id;
    item.addEventListener("click", () => { pick(hit.unique_id); map.zoomTo(hit); });
    return item;
  }));
  $("results").scrollTop = 0;
}

async function suggest(number) {
  suggestions ??= get("api/suggestions").then((found) => found.suggestions, () => []);
  const words = await suggestions;
  if (number !== asked || !words.length) return;
  const buttons = words.map(({ text, id }) => {
    const button = make("button", { type: "button" }, ...picture(id), text);
    button.addEventListener("click", () => go({ text }));
    return button;
  });
  $("suggestions").replaceChildren(make("p", { className: "hint", textContent: "Seen in this dataset:" }), ...buttons);
  $("suggestions").hidden = false;
}

function chips(query) {
  const found = [];
  const chip = (label, changes, extra = {}) => {
    const button = make("button", { type: "button", ...extra }, label, make("span", { textContent: "✕", ariaHidden: "true" }));
    button.setAttribute("aria-label", `Remove: ${label.alt ?? label}`);
    button.addEventListener("click", () => go(changes, { keepView: true }));
    found.push(button);
  };
  for (const [side, prefix] of [["id", "like"], ["unlike", "not"]]) {
    for (const id of query[side]) {
      const rest = query[side].filter((n) => n !== id);
      chip(prefix, { [side]: rest, ...(side === "id" && !rest.length && !query.text ? { unlike: [] } : {}) }, { className: side === "unlike" ? "no" : "" });
      found.at(-1).prepend(...picture(id));
      found.at(-1).setAttribute("aria-label", `Remove: ${prefix} ${id}`);
    }
  }
  if (query.bbox) chip("this area", { bbox: "" });
  if (query.start || query.end) chip(`${query.start || "…"} to ${query.end || "…"}`, { start: "", end: "" });
  if (query.concept) chip(`concept ${query.concept}`, { concept: "" });
  $("chips").replaceChildren(...found);
}

function legend(on, note) {
  const parts = STEPS.map((step) => make("span", {}, make("i"), step.label));
  parts.forEach((part, i) => (part.firstChild.style.background = STEPS[i].colour));
  const colours = on ? [make("div", {}, "better match than ", ...parts)] : [];
  $("colours").replaceChildren(...colours, ...(note ? [make("div", { className: "hint", textContent: note })] : []));
  $("legend").hidden = !$("colours").childElementCount;
  $("legend").firstChild.textContent = on ? "Colours" : "Places drawn";
}

function pick(id) {
  picked = id;
  for (const item of $("results").children) item.setAttribute("aria-current", String(item.dataset.id === id));
  const place = id && shown.get(id);
  if (!place) return map.pick(null);
  const item = [...$("results").children].find((one) => one.dataset.id === id);
  item?.scrollIntoView({ block: "nearest" });
  const title = make("strong", { textContent: place.near ?? where(place) });
  if (!place.near) nameOf(place).then((near) => near && (title.textContent = near));
  const text = make("div", {},
    make("p", {}, title),
    make("p", { textContent: where(place) }),
    make("p", { textContent: days(place) }),
    make("p", { className: "id", textContent: place.id }),
    make("a", { href: inOpenStreetMap(place), target: "_blank", rel: "noopener noreferrer", textContent: "Open in OpenStreetMap" }),
    markButtons(place));
  return map.pick(place, make("div", { className: "popup" }, ...picture(id), text));
}

const inOpenStreetMap = ({ lat, lon }) => `https://www.openstreetmap.org/?mlat=${lat.toFixed(5)}&mlon=${lon.toFixed(5)}#map=15/${lat.toFixed(5)}/${lon.toFixed(5)}`;

// Distance and direction from the nearest town; results come with theirs.
async function nameOf(place) {
  const { near } = await get(`api/gazetteer/near?lon=${place.lon}&lat=${place.lat}`).catch(() => ({ near: null }));
  return (place.near = near);
}

function fillForm(query) {
  for (const name of WORDS) if ($(name)) $(name).value = query[name] || (name === "k" ? "20" : "");
  if (query.negative || query.start || query.end || query.concept) $("filters").open = true;
}

// ---- going somewhere, and concepts

const countries = new Intl.DisplayNames("en", { type: "region" });
const titleOf = ({ name, region, country }) => [name, region, countries.of(country)].filter(Boolean).join(", ");
const tell = (text) => ($("told").textContent = text);

// Latitude and longitude of a text such as "48.21, 16.37" or "33.9 S 151.2 E"; null for other texts.
function coordinates(text) {
  const found = text.trim().match(/^([+-]?\d+(?:\.\d+)?)\s*°?\s*([NS]?)[\s,;]+([+-]?\d+(?:\.\d+)?)\s*°?\s*([EW]?)$/i);
  if (!found) return null;
  const lat = Number(found[1]) * (found[2].toUpperCase() === "S" ? -1 : 1);
  const lon = Number(found[3]) * (found[4].toUpperCase() === "W" ? -1 : 1);
  return Math.abs(lat) <= 90 && Math.abs(lon) <= 180 ? { lat, lon } : null;
}

const townsNamed = (name) => get(`api/gazetteer?${new URLSearchParams({ name })}`).then((found) => found.towns, () => []);

async function offerTowns() {
  const name = $("where").value;
  if (name.length < 2 || name.includes(",") || coordinates(name)) return;
  const towns = await townsNamed(name);
  if (name === $("where").value) $("towns").replaceChildren(...towns.map((town) => make("option", { value: titleOf(town) })));
}

async function goTo(event) {
  event.preventDefault();
  const text = $("where").value.trim();
  if (!text) return;
  let point = coordinates(text);
  if (!point) {
    const towns = await townsNamed(text.split(",")[0]);
    point = towns.find((town) => titleOf(town) === text) ?? towns[0];
  }
  if (!point) return tell(`No town of 5,000 people or more is called “${text}”: try latitude, longitude.`);
  map.goTo(point);
  const here = point.name ? titleOf(point) : where(point);
  const { searched } = await get(`api/places?limit=1&bbox=${map.bounds.join(",")}`).catch(() => ({}));
  tell(searched === 0 ? `${here}: this dataset has no place in view here.` : here);
}

async function learn(event) {
  event.preventDefault();
  const { id, unlike, text } = readAddress();
  const name = $("name").value.trim();
  const marks = { name, id, unlike, ...(text && { text }) };
  try {
    if (facts.saves_concepts) {
      await get("api/concept", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(marks) });
      offerConcepts([...facts.concepts, name].sort());
      say(`The concept “${name}” is saved: it is in the filters from now on.`, true);
    } else {
      const params = new URLSearchParams({ name, ...(text && { text }) });
      for (const side of LISTS) marks[side].forEach((one) => params.append(side, one));
      await get(`api/concept?${params}`); // an error is told here rather than downloaded
      make("a", { href: `api/concept?${params}`, download: `${name}.json` }).click();
      say("Put the file into the folder “concepts” of the dataset, and it is in the filters.", true);
    }
  } catch (error) {
    say(error.message);
  }
}

function offerConcepts(names) {
  facts.concepts = names;
  $("concept").replaceChildren($("concept").firstElementChild, ...names.map((value) => make("option", { value, textContent: value })));
  $("concepts").hidden = !names.length;
}

// ---- keyboard and start

function step(by) {
  const items = [...$("results").children];
  if (!items.length) return;
  const at = items.findIndex((item) => item.dataset.id === picked);
  const item = items[Math.max(0, Math.min(items.length - 1, at + by))];
  item.querySelector(".place").focus();
  pick(item.dataset.id);
}

function onKey(event) {
  const typing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { if (typing) event.target.blur(); else pick(null); return; }
  if (typing) return;
  const inMap = event.target.closest("#map");
  const on = event.target.closest("li")?.dataset.id ?? picked;
  if (event.key === "/") { event.preventDefault(); $("text").focus(); }
  else if (!inMap && (event.key === "ArrowDown" || event.key === "ArrowUp")) { event.preventDefault(); step(event.key === "ArrowDown" ? 1 : -1); }
  else if (on && event.key.toLowerCase() === "m") mark(on, "id");
  else if (on && event.key.toLowerCase() === "n" && isQuestion(readAddress())) mark(on, "unlike");
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    $("share").textContent = "Copied";
  } catch {
    $("share").textContent = "Copy it from the address bar"; // a browser may refuse without https
  }
  setTimeout(() => ($("share").textContent = "Copy link"), 2000);
}

function showProblems(problems) {
  $("problems").replaceChildren(...problems.slice(0, 5).map((text) => make("li", { textContent: text })));
  if (problems.length > 5) $("problems").append(make("li", { textContent: `and ${problems.length - 5} more` }));
  $("problems").hidden = !problems.length;
}

async function start() {
  map = new PlaceMap("map", {
    basemap: "https://tile.openstreetmap.org",
    onPick: pick,
    onMove: () => facts?.rows > ALL_AT_ONCE && lit && surroundings(lit),
    onBasemap: (loads) => tell(loads || !$("basemap").checked ? "" : "The basemap does not load: it needs a network. Everything else works without."),
  });
  map.onPointer((text) => ($("pointer").textContent = text));
  facts = await get("api/dataset");
  showProblems(facts.problems);
  setInterval(() => get("api/problems").then((now) => showProblems(now.problems), () => {}), PROBLEMS_EVERY_MS);
  map.thumbnails = facts.thumbnails;
  const span = facts.time ? `${facts.time[0]} to ${facts.time[1]}` : "";
  $("about").textContent = `${facts.rows.toLocaleString("en")} ${facts.rows === 1 ? "place" : "places"}, model ${facts.model}\n${span}`;
  $("words").replaceChildren(...facts.words.map((value) => make("option", { value })));
  offerConcepts(facts.concepts);
  $("learn").querySelector("button").textContent = facts.saves_concepts ? "Save" : "Download";
  $("legend").open = innerWidth > 760;
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData($("search")));
    const words = { text: given.text.trim(), negative: given.negative.trim() };
    const chosen = given.concept && given.concept !== readAddress().concept; // a concept replaces words and examples
    go({ ...given, ...(chosen ? { text: "", negative: "", id: [], unlike: [] } : { ...words, concept: words.text ? "" : given.concept }) });
  });
  for (const name of ["start", "end", "k", "concept"]) $(name).addEventListener("change", () => $("search").requestSubmit());
  $("here").addEventListener("click", () => go({ bbox: map.bounds.join(",") }, { keepView: true }));
  $("whole").addEventListener("click", () => map.fit([], facts.extent));
  $("basemap").addEventListener("change", (event) => { tell(""); map.showBasemap(event.target.checked); });
  $("goto").addEventListener("submit", goTo);
  $("where").addEventListener("input", offerTowns);
  $("learn").addEventListener("submit", learn);
  $("share").addEventListener("click", copyLink);
  addEventListener("keydown", onKey);
  addEventListener("popstate", () => answer());
  await map.ready;
  await answer();
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => say(`The page could not start: ${error.message}`));
