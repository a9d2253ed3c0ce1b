#!/bin/sh
# Write the secrets that the containers need to .env, random ones where there are none, and let its
# group read it: Compose mounts it into them as a file. Run it before the first `docker compose up`,
# and after .env has changed its owner; it changes no secret.
#
#   sh docker/secrets.sh       for `docker compose up`
#   sh docker/secrets.sh s3    for `docker compose --profile s3 up`: recordings go to its server
set -eu
cd "$(dirname "$0")/.."

umask 027
touch .env
chmod 640 .env

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# Replace or append a line, in place, so that the file keeps its owner.
put() {
    rest=$(grep -v "^$1=" .env || true)
    printf '%s\n' ${rest:+"$rest"} "$1=$2" >.env
}

if grep -q '^DATABASE_URL=.*://[^@/]*:[^@/]*@' .env; then
    echo "DATABASE_URL in .env has a password, which every container's environment would show: put it" \
        "into DATABASE_PASSWORD instead" >&2
    exit 1
fi
for name in DATABASE_PASSWORD REDIS_PASSWORD GATEWAY_API_KEY GRAFANA_PASSWORD SECRETS_KEY VOICE_KEY; do
    grep -q "^$name=." .env || put "$name" "$(random)"
done
# The group through which the containers' users read it (docker-compose.yml).
# shellcheck disable=SC2012 # stat has other options on every system
put SECRETS_GID "$(ls -n .env | awk '{ print $4 }')"

if [ "${1:-}" = s3 ]; then
    ours=http://s3:8333
    if grep -q '^STORAGE_BACKEND=s3' .env && ! grep -q "^S3_ENDPOINT_URL=$ours" .env; then
        echo ".env names another S3 server already: leave out the profile s3, or remove the S3_ settings" >&2
        exit 1
    fi
    for name in S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY; do
        grep -q "^$name=." .env || put "$name" "$(random)"
    done
    grep -q "^S3_BUCKET=." .env || put S3_BUCKET stenopool
    put STORAGE_BACKEND s3
    put S3_ENDPOINT_URL "$ours"
    put S3_ADDRESSING_STYLE path
    # Clients cannot reach it: the gateway passes downloads on.
    grep -q "^S3_LINKS=." .env || put S3_LINKS false
fi
echo ".env has all secrets; clients use GATEWAY_API_KEY"
