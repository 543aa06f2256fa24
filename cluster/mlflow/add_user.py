"""Make a user of this MLflow server; its password is read from stdin, where nobody can list it."""

from __future__ import annotations

import os
import sys

from mlflow.server import get_app_client


def main() -> None:
    """Make the user that the first argument names; runs inside the server's container."""
    os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    client = get_app_client("basic-auth", "http://localhost:5000")
    client.create_user(sys.argv[1], sys.stdin.readline().strip())


if __name__ == "__main__":
    main()
