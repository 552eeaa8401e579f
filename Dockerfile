# CPU image of the command line and the map. Build: docker build -t rs-embed .
# Use:   docker run --rm rs-embed demo
#        docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/data" rs-embed serve dataset --host 0.0.0.0 --allow-host localhost
FROM python:3.11-slim-bookworm

WORKDIR /src
COPY . .
# torch's own index has builds without CUDA; the other packages come from PyPI.
RUN pip install --no-cache-dir uv && \
    uv pip install --system --no-cache --torch-backend=cpu --constraint constraints.txt '.[all]' && \
    useradd --create-home user && mkdir /data && chown user /data

USER user
WORKDIR /data
ENTRYPOINT ["rs-embed"]
CMD ["--help"]
