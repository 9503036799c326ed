"""Who gets what: tokens, their forgeries, and that what counts is the present."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwt.algorithms import ECAlgorithm

from entrepot.db.content import Change
from tests import contents
from tests.integration.registry.conftest import Demo
from tests.services import SERVICE, Running, until, write_key

MANIFEST = "/v2/demo/app/manifests/latest"


def own_key(running: Running) -> Any:
    return load_pem_private_key((running.keys / "key-1.pem").read_bytes(), password=None)


def forge(
    demo: Demo, *, key: Any = None, headers: dict[str, Any] | None = None, algorithm: str = "ES256", **claims: Any
) -> str:
    """A token that differs from a good one only in what is said."""
    now = int(time.time())
    good = {
        "iss": SERVICE, "aud": SERVICE, "sub": "", "iat": now, "nbf": now, "exp": now + 60, "jti": "x",
        "access": [{"type": "repository", "name": "demo/app", "actions": ["pull"]}],
        "entrepot": {"distributions": {"demo/app": str(demo.distribution)}},
    }  # fmt: skip
    body = {name: value for name, value in {**good, **claims}.items() if value is not ...}
    return jwt.encode(
        body, key or own_key(demo.running), algorithm=algorithm, headers={"kid": "key-1", **(headers or {})}
    )


def without(claim: str) -> Any:
    """An argument for `forge`: leave a claim out."""
    return {claim: ...}


async def status(demo: Demo, token: str, path: str = MANIFEST) -> int:
    got = await demo.running.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    if got.status == 401:
        assert got.code == "UNAUTHORIZED"
        assert got.headers["WWW-Authenticate"].startswith("Bearer realm=")
    return got.status


async def test_without_a_token_the_challenge_names_the_scope(demo: Demo) -> None:
    for path in (MANIFEST, f"/v2/demo/app/blobs/{demo.large_digest}", "/v2/demo/app/tags/list"):
        for method in ("GET", "HEAD"):
            got = await demo.running.request(method, path)
            assert got.status == 401
            assert got.headers["WWW-Authenticate"] == (
                f'Bearer realm="{demo.running.url}/token",service="{SERVICE}",scope="repository:demo/app:pull"'
            )


async def test_names_that_do_not_exist_and_names_one_may_not_read_are_the_same_to_nobody(demo: Demo) -> None:
    private = await contents.make_repository(demo.running.owner, name="private")
    await contents.make_distribution(demo.running.owner, private, base_path="demo/private", access="Private")
    await contents.push(demo.running.owner, private, "latest", contents.image(b"secret layer"))
    answers = []
    for name in ("demo/private", "demo/nothing"):
        token = await demo.running.ask_token(f"repository:{name}:pull")
        assert jwt.decode(token.json()["token"], options={"verify_signature": False})["access"] == []
        got = await demo.running.get(f"/v2/{name}/manifests/latest", name=name)
        bare = await demo.running.request("GET", f"/v2/{name}/manifests/latest")
        answers.append([(a.status, a.body, a.headers["WWW-Authenticate"].replace(name, "NAME")) for a in (got, bare)])
    assert answers[0] == answers[1]
    assert answers[0][0][0] == 401


async def test_a_token_is_for_its_name_only(demo: Demo) -> None:
    for name in ("demo", "demo/app/more", "demo/ap"):
        repository = await contents.make_repository(demo.running.owner, name=name.replace("/", "-"))
        await contents.make_distribution(demo.running.owner, repository, base_path=name)
        await contents.push(demo.running.owner, repository, "latest", demo.image, s3=demo.running.store)
        own = await demo.running.get(f"/v2/{name}/manifests/latest", name=name)
        other = await demo.running.get(f"/v2/{name}/manifests/latest", name="demo/app")
        assert (own.status, other.status) == (200, 401)
        assert 'error="insufficient_scope"' in other.headers["WWW-Authenticate"]


async def test_content_of_another_repository_is_not_here_whoever_knows_its_digest(demo: Demo) -> None:
    other = await contents.make_repository(demo.running.owner, name="other")
    await contents.make_distribution(demo.running.owner, other, base_path="demo/other", access="Private")
    secret = contents.image(b"the secret layer of another")
    await contents.push(demo.running.owner, other, "latest", secret)
    for path in (f"manifests/{secret.digest}", *(f"blobs/{contents.sha256(blob)}" for blob in secret.blobs)):
        for method in ("GET", "HEAD"):
            assert (await demo.running.get(f"/v2/demo/app/{path}", method=method)).status == 404


async def test_a_foreign_layer_named_by_a_manifest_gives_no_access_to_its_bytes(demo: Demo) -> None:
    """A manifest may name foreign layers that are not linked here; also not through a pinned version."""
    from entrepot.oci import media_types
    from entrepot.oci.manifest import parse

    owner = demo.running.owner
    other = await contents.make_repository(owner, name="other")
    secret = b"bytes that only another repository holds"
    await contents.store(owner, other, secret)
    document = {
        "schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": contents.descriptor(demo.image.config, media_types.OCI_CONFIG),
        "layers": [contents.descriptor(secret, media_types.OCI_NONDISTRIBUTABLE_LAYER)],
    }  # fmt: skip
    [made] = await contents.put(owner, parse(json.dumps(document).encode(), content_type=media_types.OCI_MANIFEST))
    await contents.commit(owner, demo.repository, Change(tags={"foreign": made}, add_manifests=[made]))
    for pinned in (None, 2):
        await owner.execute("update distribution set pinned = $1", pinned)
        assert (await demo.running.get("/v2/demo/app/manifests/foreign")).status == 200
        assert (await demo.running.get(f"/v2/demo/app/blobs/{contents.sha256(secret)}")).status == 404


async def test_a_good_token_is_taken(demo: Demo) -> None:
    assert await status(demo, forge(demo)) == 200


async def test_forged_tokens_are_refused(demo: Demo) -> None:
    now = int(time.time())
    other_key = ec.generate_private_key(ec.SECP256R1())
    public = own_key(demo.running).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    jwk = ECAlgorithm.to_jwk(other_key.public_key(), as_dict=True)

    def hand_made(header: dict[str, Any], sign: bytes = b"") -> str:
        def part(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        body = forge(demo).split(".")[1]
        return f"{part(json.dumps(header).encode())}.{body}.{part(sign)}"

    import hashlib
    import hmac

    head = (
        base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "key-1", "typ": "JWT"}).encode())
        .rstrip(b"=")
        .decode()
    )
    signed = f"{head}.{forge(demo).split('.')[1]}"
    mac = base64.urlsafe_b64encode(hmac.new(public, signed.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    tokens = {
        "another key under our id": forge(demo, key=other_key),
        "its own key in the header": forge(demo, key=other_key, headers={"jwk": jwk}),
        "a chain of certificates in the header": forge(demo, key=other_key, headers={"x5c": ["MIIB"]}),
        "a place to fetch a key from": forge(
            demo, key=other_key, headers={"jku": demo.running.url + "/jwks", "x5u": "http://localhost:1/"}
        ),
        "an unknown id": forge(demo, headers={"kid": "key-2"}),
        "an id that is no string": hand_made({"alg": "ES256", "kid": ["key-1"]}),
        "no id": hand_made({"alg": "ES256", "typ": "JWT"}),
        "no signature": hand_made({"alg": "none", "kid": "key-1"}),
        "the public key as a symmetric secret": f"{signed}.{mac}",
        "critical extensions we do not know": forge(demo, headers={"crit": ["x"], "x": 1}),
        "another audience": forge(demo, aud="another"),
        "our audience among others": forge(demo, aud=[SERVICE, "another"]),
        "a part of our audience": forge(demo, aud=SERVICE[:-1]),
        "another issuer": forge(demo, iss="another"),
        "a part of our issuer": forge(demo, iss=SERVICE[:-1]),
        "expired": forge(demo, exp=now - 60),
        "of the future": forge(demo, nbf=now + 120),
        "issued in the future": forge(demo, iat=now + 120),
        **{f"no {claim}": forge(demo, **without(claim)) for claim in ("exp", "iat", "nbf", "aud", "iss", "sub")},
        "a subject that is no string": forge(demo, sub=5),
        "access that is no list": forge(demo, access={"demo/app": ["pull"]}),
        "no access": forge(demo, access=...),
        "no distributions": forge(demo, entrepot=...),
        "a distribution that is no uuid": forge(demo, entrepot={"distributions": {"demo/app": "x"}}),
        "actions in a string": forge(demo, access=[{"type": "repository", "name": "demo/app", "actions": "pull"}]),
        "another type": forge(demo, access=[{"type": "registry", "name": "demo/app", "actions": ["pull"]}]),
        "a wildcard": forge(demo, access=[{"type": "repository", "name": "*", "actions": ["*"]}]),
        "push only": forge(demo, access=[{"type": "repository", "name": "demo/app", "actions": ["push"]}]),
        "nothing": "",
        "no token": "x.y.z",
        "dots": "....",
        "very long": "x" * 7000,
    }
    for what, token in tokens.items():
        assert await status(demo, token) == 401, what


async def test_other_schemes_get_the_challenge(demo: Demo) -> None:
    for header in ("Basic " + base64.b64encode(b"admin:secret").decode(), "Negotiate x", "Bearer", "bearer", ""):
        got = await demo.running.request("GET", MANIFEST, headers={"Authorization": header})
        assert (got.status, got.code) == (401, "UNAUTHORIZED")


async def test_what_is_not_public_any_more_is_refused_at_the_next_request(demo: Demo) -> None:
    paths = (MANIFEST, f"/v2/demo/app/blobs/{demo.small_digest}", "/v2/demo/app/tags/list")
    for path in paths:
        assert (await demo.running.get(path)).status == 200
    await demo.running.owner.execute("update distribution set access = 'Private'")
    for path in paths:
        assert (await demo.running.get(path)).status == 401
    # A token with a subject was given for a right, which is not ours to judge again before it expires.
    assert await status(demo, forge(demo, sub="system:serviceaccount:demo:robot")) == 200
    await demo.running.owner.execute("update distribution set access = 'Public'")
    for path in paths:
        assert (await demo.running.get(path)).status == 200


async def test_a_token_does_not_survive_its_distribution(demo: Demo) -> None:
    owner, named = demo.running.owner, forge(demo, sub="somebody")
    assert await status(demo, named) == 200
    await owner.execute("delete from distribution")
    assert (await demo.running.get(MANIFEST)).status == 401
    got = await demo.running.request("GET", MANIFEST, headers={"Authorization": f"Bearer {named}"})
    assert (got.status, got.code) == (404, "NAME_UNKNOWN")
    await owner.execute("delete from base_path_claim")
    await contents.make_distribution(owner, demo.repository)
    assert (await demo.running.get(MANIFEST)).status == 401
    assert await status(demo, named) == 401
    demo.running.tokens.clear()
    assert (await demo.running.get(MANIFEST)).status == 200


async def test_a_deleted_repository_is_not_served(demo: Demo) -> None:
    await demo.running.owner.execute(
        "update repository set deleted_at = now(), purge_after = now() + interval '7 days'"
    )
    assert (await demo.running.get(MANIFEST)).status == 401
    assert (
        jwt.decode(
            (await demo.running.ask_token("repository:demo/app:pull")).json()["token"],
            options={"verify_signature": False},
        )["access"]
        == []
    )


async def test_headers_of_proxies_change_nothing_and_the_realm_is_always_a_listed_address(running: Running) -> None:
    for headers, realm in [
        ({}, running.url),
        ({"Host": f"LOCALHOST:{running.registry.port}"}, running.url),
        ({"Host": "registry.example.test"}, "https://registry.example.test"),
        ({"Host": "registry.example.test:443"}, "https://registry.example.test"),
        ({"Host": "evil.test"}, running.url),
        ({"Host": 'evil.test",x="'}, running.url),
        (
            {
                "X-Forwarded-Host": "registry.example.test",
                "X-Forwarded-Proto": "https",
                "Forwarded": "host=evil.test;proto=https",
            },
            running.url,
        ),
    ]:
        got = await running.request("GET", "/v2/", headers=headers)
        assert got.headers["WWW-Authenticate"] == f'Bearer realm="{realm}/token",service="{SERVICE}"'


async def test_a_new_key_is_met_without_a_restart_and_a_removed_one_counts_no_more(demo: Demo) -> None:
    import asyncio

    before = forge(demo)
    write_key(demo.running.keys, "key-2")
    async with asyncio.timeout(10):
        while True:
            token = (await demo.running.ask_token("repository:demo/app:pull")).json()["token"]
            if jwt.get_unverified_header(token)["kid"] == "key-2":
                break
            await asyncio.sleep(0.02)
    # Reading the keys again is limited: a key that is not known yet is refused, not waited for.

    async def is_taken() -> bool:
        return await status(demo, token) == 200

    await until(is_taken)
    assert await status(demo, before) == 200


async def test_unknown_key_ids_do_not_make_requests_for_whoever_invents_them(demo: Demo) -> None:
    before = await demo.running.metric("entrepot_registry_key_fetches_total")
    for _ in range(20):
        assert await status(demo, forge(demo, headers={"kid": uuid.uuid4().hex})) == 401
    assert await demo.running.metric("entrepot_registry_key_fetches_total") <= before + 1


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
async def test_other_algorithms_by_setting(database: Any, s3: Any, tmp_path: Any, algorithm: str) -> None:
    from tests import services
    from tests.integration.registry.conftest import fill

    write_key(tmp_path / "keys", kind="rsa")
    async with services.running(
        database, s3, tmp_path / "keys", token={"token_algorithm": algorithm}, token_algorithms=(algorithm,)
    ) as started:
        demo = await fill(started)
        token = (await started.ask_token("repository:demo/app:pull")).json()["token"]
        assert jwt.get_unverified_header(token)["alg"] == algorithm
        assert await status(demo, token) == 200
        other = "PS256" if algorithm == "RS256" else "RS256"
        assert await status(demo, forge(demo, algorithm=other)) == 401


async def test_the_proxied_token_endpoint(running: Running) -> None:
    direct = await running.ask_token("repository:demo/app:pull", through="token")
    proxied = await running.ask_token("repository:demo/app:pull")
    assert proxied.status == direct.status == 200
    assert set(proxied.json()) == {"token", "access_token", "expires_in", "issued_at"}
    assert proxied.headers["Cache-Control"] == "no-store"
    refused = await running.ask_token(Authorization="Basic " + base64.b64encode(b"a:b").decode())
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    wrong = await running.request("GET", "/token?service=another")
    assert (wrong.status, wrong.code) == (400, "UNSUPPORTED")
    for method in ("POST", "PUT", "DELETE"):
        got = await running.request(method, "/token", data=b"grant_type=password&service=entrepot-test")
        assert (got.status, got.code) == (404, "UNSUPPORTED")
