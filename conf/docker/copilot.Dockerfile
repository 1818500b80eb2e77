# One Copilot CLI server as an image: docker build -f conf/docker/copilot.Dockerfile conf/docker
#
# The version is the one that Taxiway's tests run against. The npm package `@github/copilot` is a
# launcher that passes no signals on; its platform package holds the program itself, which is all
# that is taken.
FROM node:22-bookworm-slim AS package
ARG COPILOT_VERSION=1.0.102
RUN npm install --prefix /cli "@github/copilot@${COPILOT_VERSION}" \
    && cp /cli/node_modules/@github/copilot-linux-*/copilot /usr/local/bin/copilot

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home copilot \
    && install -d -o copilot -g copilot /var/lib/copilot /workspace
COPY --from=package /usr/local/bin/copilot /usr/local/bin/copilot
# What has to outlive the container: sessions, settings. One volume for each server.
ENV COPILOT_HOME=/var/lib/copilot
VOLUME /var/lib/copilot
USER copilot
WORKDIR /workspace
EXPOSE 4321
# COPILOT_CONNECTION_TOKEN must be set: the server listens beyond loopback.
CMD ["copilot", "--headless", "--host", "0.0.0.0", "--port", "4321", "--no-auto-update"]
