# Taxiway as an image: docker build -f conf/docker/taxiway.Dockerfile .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin taxiway

FROM debian:bookworm-slim
RUN useradd --system --user-group --no-create-home taxiway
COPY --from=build /src/target/release/taxiway /usr/local/bin/taxiway
USER taxiway
# It reads /etc/taxiway/taxiway.toml; clients on 4321, operators and Prometheus on 9321.
EXPOSE 4321 9321
STOPSIGNAL SIGTERM
ENTRYPOINT ["taxiway"]
