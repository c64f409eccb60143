"""The files in `docs/deploy/` name options, settings and files that there are, and belong together."""

import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
import trio

from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.settings.file import settings_of
from tests.command.test_cli import backends
from tests.command.test_lifecycle import write
from tests.processes import program

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
SETTINGS = "/etc/rawgrpc-proxy/proxy.toml"
GRACE_S = settings_of(
    [
        (
            "",
            tomllib.loads(
                'listeners=[{address=":1"}]\nroutes=[{cluster="c"}]\n[clusters.c]\nendpoints=["a:1"]'
            ),
        )
    ]
).serve.grace_s


def unit(name: str) -> configparser.ConfigParser:
    """A unit of systemd, in which a key may come twice: the last one counts here."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of systemd have capitals
    parser.read_string((DEPLOY / name).read_text(encoding="utf-8"))
    return parser


def manifests(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def containers(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container that runs the proxy, with its pod."""
    for manifest in manifests(name):
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"]["spec"]
            for container in (*pod["containers"], *pod.get("initContainers", ())):
                if container["name"] == "proxy":
                    yield container, pod


def settings_in(name: str) -> Any:
    [text] = [
        manifest["data"]["proxy.toml"] for manifest in manifests(name) if manifest["kind"] == "ConfigMap"
    ]
    return settings_of([(name, tomllib.loads(text))]).serve


KUBERNETES = ("kubernetes.yaml", "kubernetes-sidecar.yaml")


def understood(arguments: list[str]) -> None:
    options = cli.make_parser().parse_args(arguments)
    assert options.command is not None


# ------------------------------------------------------------------------- systemd


def test_the_unit_starts_the_program_with_arguments_that_it_knows() -> None:
    service = unit("rawgrpc-proxy.service")["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "rawgrpc-proxy"
    assert arguments[-1] == SETTINGS
    understood(arguments)


def test_the_unit_gives_calls_their_grace_and_tells_the_supervisor_alone_to_stop() -> None:
    service = unit("rawgrpc-proxy.service")["Service"]
    assert float(service["TimeoutStopSec"].removesuffix("s")) > GRACE_S
    assert service["KillMode"] == "mixed"
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert "-HUP $MAINPID" in service["ExecReload"]


def test_the_unit_lets_in_what_the_program_needs() -> None:
    service = unit("rawgrpc-proxy.service")["Service"]
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} <= set(service["RestrictAddressFamilies"].split())


def test_the_socket_has_the_name_that_its_comment_has_settings_listen_on() -> None:
    name = unit("rawgrpc-proxy.socket")["Socket"]["FileDescriptorName"]
    assert f'`address = "fd:{name}"`' in (DEPLOY / "rawgrpc-proxy.socket").read_text(encoding="utf-8")


# ----------------------------------------------------------------------- container


def test_the_image_runs_arguments_that_the_program_knows_and_is_built_of_what_there_is() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    [command] = re.findall(r"^CMD \[(.*)\]$", text, re.MULTILINE)
    understood([argument.strip(' "') for argument in command.split(",")])
    for files in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for file in files.split()[:-1]:
            assert (ROOT / file).exists(), file
    # What the build asks for beside the package itself.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"],
    ]
    assert all(re.search(rf"^COPY .*\b{re.escape(file)} ", text, re.MULTILINE) for file in needed)


# ---------------------------------------------------------------------- kubernetes


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_settings_of_a_config_map_can_be_used(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trustme")
    from rawgrpc_proxy.command.certs import write_certificates  # noqa: PLC0415  # needs it

    write_certificates(tmp_path / "certs")
    for secret, file in (("tls.crt", "server.pem"), ("tls.key", "server.key"), ("ca.crt", "ca.pem")):
        (tmp_path / secret).write_bytes((tmp_path / "certs" / file).read_bytes())
    for manifest in manifests(name):
        if manifest["kind"] == "ConfigMap":
            text = manifest["data"]["proxy.toml"]
            [mounted] = set(re.findall(r"/etc/rawgrpc-proxy/tls(?=/)", text))
            (tmp_path / "proxy.toml").write_text(text.replace(mounted, str(tmp_path)))
    assert cli.main(["check", str(tmp_path / "proxy.toml")]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", KUBERNETES)
def test_a_pod_gives_calls_their_grace_and_finds_its_files_and_ports(name: str) -> None:
    serve = settings_in(name)
    assert serve.admin is not None
    ports = {int(address.rpartition(":")[2]) for address in (serve.admin.address, serve.listeners[0].address)}
    [(container, pod)] = containers(name)
    understood(container["args"])
    pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pause_s + serve.grace_s < pod["terminationGracePeriodSeconds"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    named = [container["args"][-1], *re.findall(r"'(/etc/[^']*)'", repr(serve))]
    assert len(named) > 2
    assert all(str(Path(file).parent) in mounts for file in named)
    assert {port["containerPort"] for port in container.get("ports", ())} in (ports, set())


def test_probes_and_prometheus_ask_for_what_the_admin_listener_answers() -> None:
    [(container, _)] = containers("kubernetes.yaml")
    answered = (ROOT / "docs" / "admin.md").read_text(encoding="utf-8")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    serve = settings_in("kubernetes.yaml")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert f"| `GET {asked['path']}` |" in answered
        assert ports[asked["port"]] == int(serve.admin.address.rpartition(":")[2])
    [monitor] = [each for each in manifests("kubernetes.yaml") if each["kind"] == "PodMonitor"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports
    assert f"| `GET {endpoint['path']}` |" in answered


def test_the_names_of_one_manifest_are_those_of_the_others() -> None:
    every = {each["kind"]: each for each in manifests("kubernetes.yaml")}
    labels = every["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert every["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert every["Service"]["spec"]["selector"] == labels
    for kind, selector in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        assert every[kind]["spec"][selector]["matchLabels"] == labels
    [(container, _)] = containers("kubernetes.yaml")
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in every["Service"]["spec"]["ports"]} == {"grpc"} < ports
    let_in = {
        port["port"]: "from" in rule
        for rule in every["NetworkPolicy"]["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert let_in == {"grpc": False, "admin": True}, "the admin port is not for everybody"


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_knows_every_field(name: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate")
    for manifest in manifests(name):
        if manifest["kind"] != "PodMonitor":  # of an operator
            schemas.validate(manifest, "1.30", strict=True)


def test_the_container_beside_the_proxy_has_it_reload_when_the_config_map_changes(tmp_path: Path) -> None:
    [data] = [each["data"] for each in manifests("kubernetes.yaml") if each["kind"] == "ConfigMap"]
    script = tmp_path / "reload.py"
    script.write_text(data["reload.py"])

    def mount(name: str, upstream: str, *more: str) -> None:
        """As the kubelet does it: a folder of another name, and a link that changes over to it."""
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "proxy.toml", upstream, "127.0.0.1:0", more="".join(more))
        (tmp_path / "new").symlink_to(folder)
        (tmp_path / "new").rename(tmp_path / "data")

    async def main() -> None:
        async with backends("127.0.0.1:0") as (a,):
            mount("1", a, '[admin]\naddress = "127.0.0.1:0"\n')
            file = str(tmp_path / "data" / "proxy.toml")
            async with program("serve", "--config", file) as proxy:
                url = (await proxy.line(r"^admin: (\S+)$", "stdout"))[1]
                async with program(python=[str(script), file, f"{url}reload"]) as beside:
                    await beside.line("^watching ", "stdout")
                    mount("2", a, "colour = 1\n", '[admin]\naddress = "127.0.0.1:0"\n')
                    await beside.line("^422 nothing changed", "stdout")
                    await beside.line("colour is not known", "stdout")
                    mount("3", a, 'grace = "1s"\n', '[admin]\naddress = "127.0.0.1:0"\n')
                    await proxy.line("1 new worker serving")
                    beside.signal(SIGTERM)
                    await beside.exit_code()
                proxy.signal(SIGTERM)
                assert await proxy.exit_code() == 0

    trio.run(main)
