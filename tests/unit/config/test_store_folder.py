"""What is given as a folder and is a URL, and addresses that MLflow does not take."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pmlray.config.load import read_profile
from pmlray.config.store_folder import local_folder, why_no_folder
from pmlray.config.tracking_address import TRACKING_SCHEMES, tracking_address, why_not_tracked
from pmlray.errors import SpecError


@pytest.mark.parametrize(
    "given", ["s3://bucket/x", "gs://b", "hdfs://h:1/x", Path("s3://bucket/x"),
              Path("s3://bucket/x").absolute(), "abfss://u:secret@h/x"],
)  # fmt: skip
def test_a_url_is_no_folder(given: str | Path) -> None:
    with pytest.raises(SpecError) as caught:
        local_folder(given, "--store")
    said = str(caught.value)
    assert said.startswith("--store: ") and "://" in said and "give that path" in said
    assert "secret" not in said


def test_a_url_of_a_file_says_its_path() -> None:
    assert "/mnt/runs" in str(why_no_folder("file:///mnt/runs"))


@pytest.mark.parametrize("given", ["runs", "/mnt/a:b/c", "C:/runs", "./x", "a:b", "~/runs", "/"])
def test_folders_are_folders(given: str) -> None:
    assert local_folder(given, "--store") == Path(given)


@pytest.mark.parametrize(
    "uri", ["foo://bar", "s3://b", "databricks", "databricks://profile", "file:///tmp/runs",
            "./mlruns", "uc://x", "htp://h:5000"],
)  # fmt: skip
def test_an_address_that_mlflow_does_not_take_is_refused_with_what_it_takes(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(SpecError) as caught:
        tracking_address(uri, "MLFLOW_TRACKING_URI")
    said = str(caught.value)
    assert said.startswith("MLFLOW_TRACKING_URI: ")
    assert all(f"{scheme}://" in said for scheme in TRACKING_SCHEMES)


def test_what_is_refused_is_what_mlflow_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    for uri in ("foo://bar", "s3://b", "uc://x"):
        with pytest.raises(MlflowException):
            MlflowClient(tracking_uri=uri).search_experiments()
    for scheme in TRACKING_SCHEMES:
        assert why_not_tracked(f"{scheme}://h/x") is None
    assert why_not_tracked("postgresql+psycopg://u@h/x") is None
    assert why_not_tracked("sqlite:////tmp/x.db") is None
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert why_not_tracked("file:///tmp/runs") is None


@pytest.mark.parametrize("line", ["storage: s3://bucket/x", "tracking_uri: foo://bar"])
def test_a_profile_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(f"gpus_per_pack: 0\n{line}\n")
    with pytest.raises(SpecError, match=rf"{file}.*2.*: {line.partition(':')[0]}: "):
        read_profile(file)
