import pytest

from mllm_align.redact import redact, redact_overrides


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"api_keys": ["sk-1", "sk-1b"]}, {"api_keys": ["[removed]", "[removed]"]}),
        ({"secrets": {"a": "sk-1", "n": 3}}, {"secrets": {"a": "[removed]", "n": 3}}),
        ({"headers": {"Authorization": "Bearer sk-1"}}, {"headers": {"Authorization": "[removed]"}}),
        (["Authorization: Bearer sk-1"], ["Authorization: Bearer [removed]"]),
        ({"header": "Bearer sk-1"}, {"header": "Bearer [removed]"}),
        ({"url": "https://h/v1?api_key=sk-1&n=2"}, {"url": "https://h/v1?api_key=[removed]&n=2"}),
        ({"url": "https://me:sk-1@h/v1"}, {"url": "https://[removed]@h/v1"}),
    ],
)
def test_secrets_are_blanked_wherever_they_stand(config, kept):
    assert redact(config) == kept


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("a.settings={api_key: sk-1}", "a.settings={api_key: [removed]}"),
        ("a={b: {c: {token: 'sk-1,sk-2'}, d: 1}, n: 2}", "a={b: {c: {token: [removed]}, d: 1}, n: 2}"),
        ("a={api_keys: [sk-1, sk-2], n: 2}", "a={api_keys: [removed], n: 2}"),
        ("a=[{password:sk-1}]", "a=[{password:[removed]}]"),
        ("a={headers: {Authorization: Bearer sk-1}}", "a={headers: {Authorization: [removed]}}"),
        ("a={api_key_env: sk-1}", "a={api_key_env: [removed]}"),
        ("url=https://h/v1?token=sk-1", "url=https://h/v1?token=[removed]"),
    ],
)
def test_secrets_inside_an_override_are_blanked(override, kept):
    assert redact_overrides([override]) == [kept]


@pytest.mark.parametrize(
    "override",
    [
        "a={api_key_env: OPENAI_API_KEY, max_tokens: 8}",
        "a={path: 'x:y', url: https://h/v1?n=2}",
        "template='{question} The bearer of the answer key: A'",
        "alignment=dpo,ipo",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(override):
    assert redact_overrides([override]) == [override]
    name, _, value = override.partition("=")
    assert redact({name: value}) == {name: value}
