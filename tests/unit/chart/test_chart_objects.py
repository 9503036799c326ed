"""What every object of the chart must be, whatever the values: restricted, without secrets, the same at each rendering."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from entrepot.blobs.settings import BufferSettings
from entrepot.settings import DatabaseSettings, S3Settings, Settings, load
from entrepot.web.settings import WebSettings
from entrepot.web.traces import TracesSettings
from entrepot_keeper.settings import KeeperSettings
from entrepot_operator.settings import JobSettings, OperatorSettings, RemoteDefaults, TuningSettings
from entrepot_registry.settings import RegistrySettings
from entrepot_token.settings import TokenSettings
from tests.unit.chart.pod_security import violations
from tests.unit.chart.rendering import (
    CHART,
    TOP,
    containers,
    default_values,
    environment,
    find,
    helm,
    pods,
    render,
    rendered_text,
)

VARIATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one of each": {"registry": {"replicas": 1}, "token": {"replicas": 1}},
    "behind an ingress": {"externalURLs": ["https://registry.example.com", "http://localhost:30500"], "registry": {"service": {"type": "ClusterIP"}}},
    "scheduling": {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "regcred"}],
        "commonLabels": {"team": "platform"},
    },
    "pinned images": {
        "image": {"registry": "registry.example.com:5000", "repository": "a/b", "digest": f"sha256:{'0' * 64}"},
        "storage": {"embedded": {"image": {"tag": "v1"}}},
    },
    "long name": {"fullnameOverride": "a" * 40},
}  # fmt: skip


@pytest.fixture(params=VARIATIONS)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Values of an installation that somebody could want."""
    return VARIATIONS[request.param]


def test_helm_has_nothing_to_complain_about() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_renderings_are_the_same(values: dict[str, Any]) -> None:
    assert rendered_text(values) == rendered_text(values)


def test_every_pod_passes_the_restricted_profile(values: dict[str, Any]) -> None:
    found = dict(pods(render(values)))
    assert len(found) == 8
    assert {name: list(violations(pod["spec"])) for name, pod in found.items()} == {name: [] for name in found}


def test_every_container_has_a_read_only_root_file_system_and_bounded_memory(values: dict[str, Any]) -> None:
    for name, pod in pods(render(values)):
        for container in containers(pod):
            where = f"{name} {container['name']}"
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", where
            assert container["resources"]["limits"]["memory"], where
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, where
            assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), where


def test_only_those_who_ask_the_api_server_have_a_token_of_the_api_server() -> None:
    objects = render()
    accounts = {item["metadata"]["name"]: item for item in objects if item["kind"] == "ServiceAccount"}
    with_token = set()
    for _, pod in pods(objects):
        assert pod["spec"]["enableServiceLinks"] is False
        account = accounts[pod["spec"]["serviceAccountName"]]
        if pod["spec"].get("automountServiceAccountToken", account.get("automountServiceAccountToken", True)):
            with_token.add(account["metadata"]["name"])
    assert with_token == {"entrepot-operator", "entrepot-setup", "entrepot-token"}


def test_long_running_containers_have_probes(values: dict[str, Any]) -> None:
    for item in render(values):
        if item["kind"] in {"Deployment", "StatefulSet"}:
            for container in item["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), item["metadata"]["name"]


def test_the_chart_holds_no_secret(values: dict[str, Any]) -> None:
    objects = render(values)
    assert not [item for item in objects if item["kind"] == "Secret"]
    for name, pod in pods(objects):
        for container in containers(pod):
            given = environment(container)
            assert not [key for key in given if re.search("(PASSWORD|SECRET_ACCESS_KEY|ACCESS_KEY_ID|_KEY)$", key)], (
                name
            )
            assert all(
                "@" not in value or re.fullmatch(r"postgresql://[a-z_]+@[a-z-]+:5432/[a-z]+", value)
                for value in given.values()
            ), name


def test_a_part_gets_its_own_password_only() -> None:
    for name, pod in pods(render()):
        for container in containers(pod):
            keys = {
                item["valueFrom"]["secretKeyRef"]["key"]
                for item in container["env"]
                if item.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == "entrepot-database"
            }
            expected = {
                "migrate": {"owner-password"},
                "postgres": set(),
                "setup": set(),
                "versitygw": set(),
            }
            assert keys == expected.get(container["name"], {f"{container['name']}-password"}), name


def test_only_those_who_need_them_mount_keys() -> None:
    mounted: dict[str, set[str]] = {}
    for _, pod in pods(render()):
        for volume in pod["spec"].get("volumes", []):
            if "secret" in volume:
                mounted.setdefault(volume["secret"]["secretName"], set()).add(
                    pod["metadata"]["labels"]["app.kubernetes.io/component"]
                )
    assert mounted == {
        "entrepot-database": {"database"},
        "entrepot-storage": {"storage"},
        "entrepot-signing-keys": {"token"},
        "entrepot-users": {"token"},
        "entrepot-credentials-key": {"operator", "syncer"},
    }


def test_the_database_server_sees_the_superusers_password_only() -> None:
    pod = dict(pods(render()))["StatefulSet/entrepot-database"]
    (secret,) = (volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume)
    assert secret["items"] == [{"key": "postgres-password", "path": "postgres-password"}]


def test_names_fit_kubernetes(values: dict[str, Any]) -> None:
    for item in render(values):
        name = item["metadata"]["name"]
        assert len(name) <= (63 if not item["kind"].startswith("ClusterRole") else 253), name
        for key, value in item["metadata"]["labels"].items():
            assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", str(value)), f"{name}: {key}"
        if item["kind"] == "StatefulSet":
            assert len(f"{name}-0") + len("-0123456789") <= 63, "controller-revision-hash is a label"


def test_selectors_find_the_pods_and_nothing_else(values: dict[str, Any]) -> None:
    objects = render(values)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects)}
    for item in objects:
        if item["kind"] in {"Service", "PodDisruptionBudget"}:
            selector = item["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            found = [name for name, given in labels.items() if selector.items() <= given.items()]
            assert len(found) == 1, item["metadata"]["name"]


def test_services_lead_to_ports_that_exist() -> None:
    objects = render()
    named = {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], port["name"])
        for _, pod in pods(objects)
        for container in containers(pod)
        for port in container.get("ports", [])
    }
    for item in objects:
        if item["kind"] == "Service":
            component = item["spec"]["selector"]["app.kubernetes.io/component"]
            assert all((component, port["targetPort"]) in named for port in item["spec"]["ports"]), item["metadata"][
                "name"
            ]


def test_the_set_up_job_changes_its_name_when_and_only_when_its_pod_changes() -> None:
    def name(values: dict[str, Any], *arguments: str) -> str:
        return str(find(render(values, *arguments), "Job", "entrepot-setup-")["metadata"]["name"])

    assert name({}) == name({"registry": {"replicas": 5}})
    assert name({}) != name({"image": {"tag": "other"}})
    assert name({}) != name({"storage": {"bucket": "other"}})
    assert name({}) == name({}, "--is-upgrade")


def test_a_changed_image_rolls_every_part() -> None:
    before, after = (dict(pods(render(values))) for values in ({}, {"image": {"tag": "other"}}))
    for part in ("keeper", "operator", "registry", "token"):
        kind = f"Deployment/entrepot-{part}"
        assert before[kind] != after[kind]
    assert before["StatefulSet/entrepot-database"] == after["StatefulSet/entrepot-database"]


def test_the_operator_starts_anew_when_the_pod_of_the_sync_runs_changes() -> None:
    before, after = (
        dict(pods(render(values)))["Deployment/entrepot-operator"]
        for values in ({}, {"upstream": {"deniedCIDRs": ["10.0.0.0/8"]}})
    )
    assert before["metadata"]["annotations"] != after["metadata"]["annotations"]


def test_the_registry_is_found_under_the_addresses_that_its_service_gives() -> None:
    def addresses(values: dict[str, Any]) -> str:
        objects = render(values)
        given = {
            environment(containers(pod)[-1])["ENTREPOT_EXTERNAL_URLS"]
            for name, pod in pods(objects)
            if name in {"Deployment/entrepot-operator", "Deployment/entrepot-registry"}
        }
        assert len(given) == 1
        return given.pop()

    assert addresses({}) == "http://localhost:30500"
    assert addresses({"registry": {"service": {"nodePort": 31000}}}) == "http://localhost:31000"
    assert addresses({"registry": {"service": {"type": "ClusterIP"}}}) == "http://entrepot-registry.entrepot.svc:5000"
    assert (
        addresses({"externalURLs": ["https://a.example", "http://b.example:8080"]})
        == "https://a.example,http://b.example:8080"
    )


def test_disruptions_are_limited_where_there_is_more_than_one_pod() -> None:
    def budgets(replicas: int) -> int:
        objects = render({"registry": {"replicas": replicas}, "token": {"replicas": replicas}})
        return sum(item["kind"] == "PodDisruptionBudget" for item in objects)

    assert budgets(2) == 2
    assert budgets(1) == 0, "a budget for one pod would only keep nodes from being drained"


def test_the_set_up_may_touch_our_definitions_only() -> None:
    ours = sorted(yaml.safe_load(path.read_text())["metadata"]["name"] for path in (TOP / "crds").glob("*.yaml"))
    rules = find(render(), "ClusterRole", "entrepot:entrepot:entrepot:setup")["rules"]
    (rule,) = [rule for rule in rules if "customresourcedefinitions" in rule["resources"]]
    assert sorted(rule["resourceNames"]) == ours


def test_no_role_has_a_wildcard_and_none_lists_secrets() -> None:
    for item in render():
        for rule in item.get("rules", []) if item["kind"] in {"Role", "ClusterRole"} else []:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], item["metadata"]["name"]
            if "secrets" in rule["resources"]:
                assert not {"list", "watch", "update", "delete"} & set(rule["verbs"]), item["metadata"]["name"]


def test_the_operator_has_the_rights_that_its_page_lists() -> None:
    page = (TOP / "docs" / "operator.md").read_text()
    listed = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(# (?:Cluster)?Role\n.*?)```", page, re.DOTALL)]
    objects = render()
    given = [
        find(objects, "ClusterRole", "entrepot:entrepot:entrepot:operator")["rules"],
        find(objects, "Role", "entrepot-operator")["rules"],
    ]

    def rights(rules: list[Any]) -> set[tuple[str, str, str]]:
        return {
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    assert [rights(rules) for rules in given] == [rights(rules) for rules in listed]


def test_all_parts_together_leave_connections_to_postgresql_free() -> None:
    objects = render()
    values = default_values()
    replicas = {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: item["spec"]["replicas"]
        for item in objects
        if item["kind"] == "Deployment"
    }
    most = 0
    for _, pod in pods(objects):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        pool = environment(pod["spec"]["containers"][0]).get("ENTREPOT_DATABASE_POOL_SIZE", "0")
        if component == "syncer":
            most += values["operator"]["maximumRuns"] * (int(pool) + 1)
        elif component in replicas:
            # One more while pods are replaced; never two operators.
            most += (replicas[component] + (component != "operator")) * int(pool)
    assert most == 214, "the comment in values.yaml has the sum"
    # Three are the superuser's; some for the set-up and for people.
    assert most <= int(values["database"]["embedded"]["parameters"]["max_connections"]) - 20


def test_sync_runs_never_have_more_connections_than_others() -> None:
    pod = dict(pods(render({"database": {"poolSize": 2}})))["ConfigMap/entrepot-syncer"]
    assert environment(containers(pod)[0])["ENTREPOT_DATABASE_POOL_SIZE"] == "2"


def test_no_upstream_is_a_service_of_the_release(values: dict[str, Any]) -> None:
    objects = render(values)
    (denied,) = {
        given["ENTREPOT_UPSTREAM_DENIED_HOSTS"]
        for _, pod in pods(objects)
        for container in containers(pod)
        if "ENTREPOT_UPSTREAM_DENIED_HOSTS" in (given := environment(container))
    }
    assert set(denied.split(",")) == {item["metadata"]["name"] for item in objects if item["kind"] == "Service"}


def test_the_set_up_is_tried_until_it_succeeds() -> None:
    job = find(render(), "Job", "entrepot-setup-")
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    assert job["spec"]["backoffLimit"] >= 100_000


def test_users_roles_are_added_to_the_clusters_own() -> None:
    objects = render()
    view, edit = (find(objects, "ClusterRole", f"entrepot:entrepot:entrepot:{name}") for name in ("view", "edit"))
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in view["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}{name}" for name in ("view", "edit", "admin")
    }
    assert {key for key in edit["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}{name}" for name in ("edit", "admin")
    }
    assert all("repositoryversions" not in rule["resources"] for rule in edit["rules"])


def test_the_token_service_may_only_ask_and_sees_no_password() -> None:
    objects = render()
    rules = find(objects, "ClusterRole", "entrepot:entrepot:entrepot:token")["rules"]
    assert {(*rule["apiGroups"], *rule["resources"], *rule["verbs"]) for rule in rules} == {
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "subjectaccessreviews", "create"),
    }
    pod = dict(pods(objects))["Deployment/entrepot-token"]
    (users,) = (
        v["secret"] for v in pod["spec"]["volumes"] if v.get("secret", {}).get("secretName") == "entrepot-users"
    )
    assert users["items"] == [{"key": "htpasswd", "path": "htpasswd"}]


def test_roles_for_content_hold_what_their_names_say() -> None:
    objects = render()
    held = {
        name: find(objects, "ClusterRole", f"entrepot-{name}")["rules"]
        for name in ("puller", "pusher", "registry-admin")
    }
    verbs = {"puller": ["pull"], "pusher": ["pull", "push"], "registry-admin": ["pull", "push", "delete"]}
    for name, rules in held.items():
        resources = ["distributions/content", "repositories/content"]
        assert rules == [{"apiGroups": ["entrepot.dev"], "resources": resources, "verbs": verbs[name]}]


def test_the_first_user_is_an_administrator_and_absent_where_users_are_somebody_elses() -> None:
    objects = render()
    binding = find(objects, "ClusterRoleBinding", "entrepot:entrepot:entrepot:admin")
    assert binding["roleRef"]["name"] == "entrepot-registry-admin"
    assert [subject["name"] for subject in binding["subjects"]] == ["entrepot:htpasswd:admin"]
    own = render({"token": {"users": {"existingSecret": "people"}}})
    assert not [item for item in own if item["metadata"]["name"] == "entrepot:entrepot:entrepot:admin"]
    setup = find(own, "Job", "entrepot-setup-")["spec"]["template"]
    assert "ENTREPOT_USERS_SECRET" not in environment(containers(setup)[0])
    assert "people" in str(dict(pods(own))["Deployment/entrepot-token"]["spec"]["volumes"])
    (role,) = [item for item in own if item["kind"] == "Role" and item["metadata"]["name"] == "entrepot-setup"]
    assert "people" not in str(role["rules"])


def test_every_variable_of_a_part_is_one_of_its_settings_with_a_value_that_it_takes() -> None:
    parts: dict[str, list[type[Settings]]] = {
        "registry": [RegistrySettings, WebSettings, TracesSettings, BufferSettings, DatabaseSettings, S3Settings],
        "token": [TokenSettings, WebSettings, DatabaseSettings],
        "keeper": [KeeperSettings, WebSettings, DatabaseSettings, S3Settings],
        "operator": [OperatorSettings, TuningSettings, JobSettings, RemoteDefaults, DatabaseSettings],
    }
    changed = {
        "registry": {
            "workers": 3, "redirect": True, "warning": "moves on Friday", "requestRate": 2.5, "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
            "traces": {"endpoint": "http://collector:4318", "sampleRatio": 1}, "env": {"ENTREPOT_MAX_UPLOADS": "7"},
        },
        "storage": {"publicEndpoint": "https://s3.example.com"},
    }  # fmt: skip
    for values in ({}, changed):
        objects = render(values)
        for part, kinds in parts.items():
            container = find(objects, "Deployment", f"entrepot-{part}")["spec"]["template"]["spec"]["containers"][0]
            names = [item["name"] for item in container["env"] if item["name"].startswith("ENTREPOT_")]
            assert len(names) == len(set(names))
            known = {kind.prefix + field.name.upper() for kind in kinds for field in fields(kind)}
            assert set(names) <= known, f"{part} does not know {sorted(set(names) - known)}"
            for kind in kinds:
                load(kind, environment(container))
    registry = load(
        RegistrySettings,
        environment(find(objects, "Deployment", "entrepot-registry")["spec"]["template"]["spec"]["containers"][0]),
    )
    assert (registry.workers, registry.redirect, registry.request_rate, registry.max_uploads) == (3, True, 2.5, 7)
