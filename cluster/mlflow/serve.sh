#!/bin/sh
# Start the MLflow server from its environment; no secret is an argument, which anybody may list.
set -eu
for name in MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION MLFLOW_SERVER_ALLOWED_HOSTS \
    MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "$name is not set; see cluster/README.md, MLflow" >&2
        exit 2
    fi
done
umask 077
# Users live in the same database, in tables of their own. In this file a % stands for itself twice.
export MLFLOW_AUTH_CONFIG_PATH="$HOME/basic_auth.ini"
database=$(printf '%s' "$MLFLOW_BACKEND_STORE_URI" | sed 's/%/%%/g')
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $database
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000
