# Taxiway as an image: docker build -f conf/docker/taxiway.Dockerfile .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# For the build by profile: what reads the profile, and what makes a certificate for the load.
RUN rustup component add llvm-tools \
    && apt-get update && apt-get install -y --no-install-recommends openssl
COPY . .
# Two builds, and a load in between that has to pass. `--build-arg PGO=no` builds once, as cargo does:
# for machines that are slow or emulated.
ARG PGO=yes
RUN if [ "$PGO" = yes ]; then benches/pgo; else \
      cargo build --release --locked --bin taxiway \
      && install -D target/release/taxiway target/pgo/taxiway; fi

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
