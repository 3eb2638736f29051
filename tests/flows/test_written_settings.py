"""Task runs get the same settings of Prefect as without our shortcut, written once."""

from prefect.context import SettingsContext, hydrated_context, serialize_context
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, get_current_settings, temporary_settings

from flows.written_settings import settings_written_once


def test_what_a_task_run_is_sent_is_what_prefect_would_send() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_API_KEY: "secret"}):
        own = serialize_context()["settings_context"]
        own_hidden = SettingsContext.get().serialize(include_secrets=False)
        with settings_written_once():
            sent = [serialize_context() for _ in range(2)]
            hidden = SettingsContext.get().serialize(include_secrets=False)
    assert sent[0]["settings_context"] == own
    assert sent[0]["settings_context"] is sent[1]["settings_context"]
    assert hidden == own_hidden
    assert hidden["settings"]["api"]["key"] != own["settings"]["api"]["key"]
    with hydrated_context(sent[1]):
        assert get_current_settings().api.key.get_secret_value() == "secret"


def test_settings_that_change_later_are_written_anew() -> None:
    for url in ("http://127.0.0.1:1/api", "http://127.0.0.1:2/api"):
        with temporary_settings({PREFECT_API_URL: url}), settings_written_once():
            assert serialize_context()["settings_context"]["settings"]["api"]["url"] == url
