#!/bin/sh
# Found the consortium of compose.yaml, enrol its three hospitals, start everything. Once; after that
# `docker compose up --detach` is enough.
#
# Between real machines, requests and certificates go by mail, and the fingerprints are read out on
# the telephone. Here one script sees both sides.
#
#   COMPOSE   the compose command; "podman compose" works as well
set -eu
cd "$(dirname "$0")"

home=/var/lib/fedward
compose() { ${COMPOSE:-docker compose} "$@"; }
# run SERVICE ARGUMENTS: `fedward ARGUMENTS` in a container of that service
run() { service=$1; shift; compose run --rm --no-deps -T "$service" "$@" </dev/null; }
# take SERVICE FILE > …   put SERVICE FILE < …
take() { compose run --rm --no-deps -T --entrypoint cat "$1" "$2" </dev/null; }
put() { compose run --rm --no-deps -T --entrypoint tee "$1" "$2" >/dev/null; }
# field NAME: its value in JSON
field() { sed -n "s/.*\"$1\": \"\\([^\"]*\\)\".*/\\1/p"; }
# the health check of the images asks at this port, which only the container itself can reach
monitor() {
    compose run --rm --no-deps -T --entrypoint sed "$1" \
        -i 's/^# port = 0 .*/port = 9464/' "$2" </dev/null
}

root=$(run server server init --dir $home/consortium --name Example --host server --json |
    field root_fingerprint)
[ -n "$root" ] || { echo "start.sh: no consortium was founded, see above" >&2; exit 1; }
monitor server $home/consortium/server.toml

for site in north south east; do
    mkdir -p "data/$site"
    fingerprint=$(run $site client init --dir $home/site --site $site --json | field fingerprint)
    monitor $site $home/site/client.toml
    take $site $home/$site.csr | put server $home/$site.csr
    run server server enroll $home/consortium $home/$site.csr \
        --fingerprint "$fingerprint" --out $home/$site.crt
    take server $home/$site.crt | put $site $home/$site.crt
    run $site client install $home/site $home/$site.crt --ca-fingerprint "$root"
done

compose up --detach --wait
echo "The server and three hospitals run. Next, for each: edit site.toml and policy.toml."
