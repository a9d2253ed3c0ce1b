#!/bin/sh
# Have .env hold the secrets that the containers need, made up at random where there are none, and
# let its group read it: Compose mounts it into them as a file. For before the first `docker compose
# up`, and after .env has changed hands; it changes no secret.
set -eu
cd "$(dirname "$0")/.."

umask 027
touch .env
chmod 640 .env

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# Replace or append a line; what is written goes through the same file, which keeps its owner.
put() {
    rest=$(grep -v "^$1=" .env || true)
    printf '%s\n' ${rest:+"$rest"} "$1=$2" >.env
}

for name in DATABASE_PASSWORD REDIS_PASSWORD GATEWAY_API_KEY GRAFANA_PASSWORD; do
    grep -q "^$name=." .env || put "$name" "$(random)"
done
# The group by which containers, whose users are others, read it (docker-compose.yml).
# shellcheck disable=SC2012 # stat has other options on every system
put SECRETS_GID "$(ls -n .env | awk '{ print $4 }')"
echo ".env has all secrets: GATEWAY_API_KEY in it is the key for clients"
