# SPDX-License-Identifier: Apache-2.0
"""Files of `server.tls` that are of no use are named at the start, with the remedy."""

from pathlib import Path

import pytest
import trustme
import yaml

from vllm_gateway.configuration.loading import ConfigError, load_settings


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    issued = trustme.CA().issue_cert("localhost")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    key.touch(mode=0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return {"certificate": str(certificate), "key": str(key)}


def written(folder: Path, tls: dict[str, str]) -> Path:
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump({"server": {"tls": tls}}))
    return file


def problem(folder: Path, tls: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(written(folder, tls), {})
    (only,) = caught.value.problems
    return str(only)


def test_good_files(tmp_path: Path, files: dict[str, str]) -> None:
    assert load_settings(written(tmp_path, files), {}).server.tls is not None


def test_a_key_that_others_can_write(tmp_path: Path, files: dict[str, str]) -> None:
    Path(files["key"]).chmod(0o666)
    assert "chmod 600" in problem(tmp_path, files)


def test_the_key_of_another_certificate(tmp_path: Path, files: dict[str, str]) -> None:
    Path(files["key"]).write_bytes(trustme.CA().issue_cert("other").private_key_pem.bytes())
    assert "is not the key of" in problem(tmp_path, files)


@pytest.mark.parametrize("setting", ["certificate", "key", "client_ca"])
def test_no_such_file(setting: str, tmp_path: Path, files: dict[str, str]) -> None:
    found = problem(tmp_path, {**files, setting: str(tmp_path / "none.pem")})
    assert f"server.tls.{setting}" in found
    assert "cannot be read" in found


@pytest.mark.parametrize("setting", ["certificate", "key", "client_ca"])
def test_not_in_pem_form(setting: str, tmp_path: Path, files: dict[str, str]) -> None:
    other = tmp_path / "other.pem"
    other.touch(mode=0o600)
    other.write_text("no such thing")
    assert "PEM form" in problem(tmp_path, {**files, setting: str(other)})


def test_a_key_with_a_passphrase(tmp_path: Path, files: dict[str, str]) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files["key"]).read_bytes(), None)
    Path(files["key"]).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "passphrase" in problem(tmp_path, files)
