"""Every mistake in a configuration file is named with file, key and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config_file import load_config, read_secrets, store_path
from gateway.errors import ConfigError
from tests.fakes.rig import config_data


def write(folder: Path, data: Any) -> Path:
    path = folder / "understudy.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def good(folder: Path) -> dict[str, Any]:
    return config_data("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1", folder / "x.db")


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value.problems


def test_the_issue_s_shape_is_accepted(tmp_path: Path) -> None:
    text = """
listen: {host: 127.0.0.1, port: 8080, workers: 1}
store: sqlite:///./understudy.db
keys: [{name: app, key_env: UNDERSTUDY_KEY, tasks: ["*"], may_override: true}]
default: {passthrough: teacher}
tasks:
  - name: banking-intents
    match: {models: [gpt-4o-mini]}
    teacher: {base_url: https://example.com/v1, model: big, api_key_env: TEACHER_KEY,
              price: {input: 2.5, output: 10.0}}
    student: {base_urls: [http://127.0.0.1:8001/v1], model: banking-intents@v1,
              price_per_hour: 0.10}
    router: {artefact: ./artefacts/banking-intents/router/v1, gate_tokens: 32, hold: 32}
    risk: {alpha: 0.05, delta: 0.05, comparator: label, draw_rate: 0.02}
"""
    config = load_config(write(tmp_path, text))
    router = config.tasks[0].router
    assert router is not None
    assert router.artefact == tmp_path / "artefacts/banking-intents/router/v1"
    assert store_path(config) == tmp_path / "understudy.db"
    assert config.tasks[0].teacher.price.output == 10.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lisen": {}}, "lisen: unknown key; did you mean 'listen'?"),
        ({"_env_file": "/etc/hostname"}, "_env_file: unknown key"),
        ({"listen": {"prot": 1}}, "listen.prot: unknown key; did you mean 'port'?"),
        ({"listen": {"port": 99999}}, "listen.port: Input should be less than or equal to 65535"),
        ({"listen": {"workers": 0}}, "listen.workers: Input should be greater than or equal to 1"),
        ({"listen": {"host": "0.0.0.0"}, "keys": []},
         "(file): without keys only a loopback address may be bound"),
        ({"store": "postgres://x"}, "store: String should match pattern"),
        ({"passthrough_paths": ["/v1/embeddings"]}, "passthrough_paths needs default.passthrough"),
        ({"passthrough_paths": ["/etc"], "default": {"passthrough": "teacher"}},
         "passthrough_paths[0]: String should match pattern"),
        ({"tasks": []}, "tasks: List should have at least 1 item"),
        ({"default": {"passthrough": "nobody"}}, "default.passthrough 'nobody' is neither"),
        ({"keys": [{"name": "a"}]}, "keys[0]: name key_env or sha256"),
        ({"keys": [{"name": "a", "key_env": "A", "tasks": ["other"]}]}, "names task 'other'"),
        ({"keys": [{"name": "a", "key_env": "A"}, {"name": "a", "key_env": "B"}]},
         "key 'a' is defined twice"),
    ],
)  # fmt: skip
def test_a_mistake_at_the_top_is_named(tmp_path: Path, change: Any, expected: str) -> None:
    path = write(tmp_path, {**good(tmp_path), **change})
    found = problems(path)
    assert len(found) == 1
    assert found[0].startswith(f"{path}: ")
    assert expected in found[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "Bad Name"}, "tasks[0].name: String should match pattern"),
        ({"teacher": {"base_url": "ftp://x", "model": "m"}},
         "tasks[0].teacher.base_url: must start with http:// or https:// and name a host (got "
         "'ftp://x')"),
        ({"teacher": {"base_url": "https://me:pass@x/v1", "model": "m"}},
         "tasks[0].teacher.base_url: must hold no user or password: name a variable with the "
         "key instead (got 'https://***@x/v1')"),
        ({"teacher": {"base_url": "http://x/v1?a=b", "model": "m"}},
         "tasks[0].teacher.base_url: must be without spaces, '?' and '#'"),
        ({"teacher": {"base_url": "http://x:port/v1", "model": "m"}},
         "tasks[0].teacher.base_url: Port could not be cast to integer"),
        ({"teacher": {"base_url": "http://x"}}, "tasks[0].teacher.model: is required"),
        ({"teacher": {"base_url": "http://x", "model": "m", "api_key": "sk"}},
         "tasks[0].teacher.api_key: unknown key; did you mean 'api_key_env'?"),
        ({"risk": {"alpha": 2}}, "tasks[0].risk.alpha: Input should be less than 1 (got 2)"),
        ({"risk": {"on_unproven": "close", "draw_rate": 0}},
         "tasks[0].risk: on_unproven: close needs draw_rate above 0"),
        ({"risk": {"comparator": "vibes"}},
         "tasks[0].risk.comparator: comparator 'vibes': the kinds are label"),
        ({"router": None}, "a student needs router.artefact"),
        ({"match": {}}, "tasks[0].match: name at least one of models, template, keys"),
        ({"match": {"models": ["banking-intents"]}}, "which is a task itself"),
        ({"match": {"keys": ["stranger"]}}, "claims key 'stranger', which does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_task_is_named(tmp_path: Path, change: Any, expected: str) -> None:
    data = good(tmp_path)
    data["tasks"][0].update(change)
    found = problems(write(tmp_path, data))
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\x00", "- x", "1: 2"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert problems(path)[0].startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == [
        f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"
    ]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    data = good(tmp_path)
    data["listen"] = {"port": "x"}
    data["tasks"][0]["risk"] = {"alpha": 0}
    assert len(problems(write(tmp_path, data))) == 2


def test_the_environment_overrides_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_LISTEN__PORT", "9123")
    assert load_config(write(tmp_path, good(tmp_path))).listen.port == 9123
    monkeypatch.setenv("UNDERSTUDY_LISTEN__PORT", "many")
    assert "listen.port" in problems(write(tmp_path, good(tmp_path)))[0]


def test_unset_secrets_are_named_and_never_in_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, good(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        read_secrets(config, {"UNDERSTUDY_KEY": "a"})
    assert caught.value.problems == [
        "keys[1].key_env: environment variable PLAIN_KEY is not set",
        "tasks[0].teacher.api_key_env: environment variable TEACHER_KEY is not set",
    ]
    same = {"UNDERSTUDY_KEY": "a", "PLAIN_KEY": "a", "TEACHER_KEY": "t"}
    with pytest.raises(ConfigError, match="same value"):
        read_secrets(config, same)
