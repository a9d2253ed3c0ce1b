#!/bin/sh
# Have .env hold the secrets that the containers need, made up at random where there are none, and
# let its group read it: Compose mounts it into them as a file. For before the first `docker compose
# up`, and after .env has changed hands; it changes no secret.
#
#   sh docker/secrets.sh       for `docker compose up`
#   sh docker/secrets.sh s3    for `docker compose --profile s3 up`: recordings go to its server
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

if grep -q '^DATABASE_URL=.*://[^@/]*:[^@/]*@' .env; then
    echo "DATABASE_URL in .env has a password, which all containers' environments would show: put it" \
        "into DATABASE_PASSWORD instead" >&2
    exit 1
fi
for name in DATABASE_PASSWORD REDIS_PASSWORD GATEWAY_API_KEY GRAFANA_PASSWORD SECRETS_KEY; do
    grep -q "^$name=." .env || put "$name" "$(random)"
done
# The group by which containers, whose users are others, read it (docker-compose.yml).
# shellcheck disable=SC2012 # stat has other options on every system
put SECRETS_GID "$(ls -n .env | awk '{ print $4 }')"

if [ "${1:-}" = s3 ]; then
    ours=http://s3:8333
    if grep -q '^STORAGE_BACKEND=s3' .env && ! grep -q "^S3_ENDPOINT_URL=$ours" .env; then
        echo ".env names another S3 already: leave the profile s3 out, or take its S3_ settings away" >&2
        exit 1
    fi
    for name in S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY; do
        grep -q "^$name=." .env || put "$name" "$(random)"
    done
    grep -q "^S3_BUCKET=." .env || put S3_BUCKET stenopool
    put STORAGE_BACKEND s3
    put S3_ENDPOINT_URL "$ours"
    put S3_ADDRESSING_STYLE path
    # Nobody outside reaches it: what clients download comes by the gateway.
    grep -q "^S3_LINKS=." .env || put S3_LINKS false
fi
echo ".env has all secrets: GATEWAY_API_KEY in it is the key for clients"
