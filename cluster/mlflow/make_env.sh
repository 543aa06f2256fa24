#!/bin/sh
# Make cluster/mlflow/.env with new random passwords, readable by its owner alone.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "cluster/mlflow/.env is there already; the databases hold its passwords, so it is kept" >&2
    exit 2
fi
umask 077
random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
for name in POSTGRES_PASSWORD S3_SECRET_KEY MLFLOW_ADMIN_PASSWORD MLFLOW_SECRET_KEY; do
    echo "$name=$(random)"
done > .env
echo "made cluster/mlflow/.env; the login is admin with its MLFLOW_ADMIN_PASSWORD"
