# Taxiway as an image: docker build -f conf/docker/taxiway.Dockerfile .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# For the build by profile: what reads the profile, and what makes a certificate for the load.
RUN rustup component add llvm-tools \
    && apt-get update && apt-get install -y --no-install-recommends openssl
COPY . .
RUN benches/pgo

FROM debian:bookworm-slim
RUN useradd --system --user-group --no-create-home taxiway \
    && install -d -o taxiway -g taxiway /var/lib/taxiway
COPY --from=build /src/target/pgo/taxiway /usr/local/bin/taxiway
# Where sessions live, what operators want: has to outlive the container.
VOLUME /var/lib/taxiway
USER taxiway
# It reads /etc/taxiway/taxiway.toml; clients on 4321, operators and Prometheus on 9321.
EXPOSE 4321 9321
STOPSIGNAL SIGTERM
ENTRYPOINT ["taxiway"]
