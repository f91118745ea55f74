# Two stages: a Rust tool chain that builds, and an image that holds the program and nothing else.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The dependencies first, so that a change of our own code does not build them again.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src fixtures \
 && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
 && cargo build --locked --release --features full --bin hookswitch \
 && rm -r src fixtures
COPY src src
COPY fixtures fixtures
# Newer than what the step above left behind, whatever the times in the build context are.
RUN touch src/main.rs src/lib.rs && cargo build --locked --release --features full --bin hookswitch
# A volume takes over the owner of the folder that it is mounted on.
RUN mkdir /empty

FROM gcr.io/distroless/cc-debian12
LABEL org.opencontainers.image.title="hookswitch" \
      org.opencontainers.image.description="Receives RingCentral and Zoom telephony webhooks and never loses one" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="/README.md"
COPY --from=build /src/target/release/hookswitch /usr/bin/hookswitch
COPY config/container.toml /etc/hookswitch/hookswitch.toml
COPY LICENSE README.md /
COPY docs /docs
COPY --from=build --chown=65532:65532 /empty /data
# Numeric, so that an orchestrator can see that it is not root.
USER 65532:65532
VOLUME /data
EXPOSE 8080
ENV HOOKSWITCH_CONFIG=/etc/hookswitch/hookswitch.toml
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/usr/bin/hookswitch", "healthcheck"]
ENTRYPOINT ["/usr/bin/hookswitch"]
CMD ["serve"]
