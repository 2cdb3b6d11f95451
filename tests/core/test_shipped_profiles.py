"""The profiles in `profiles/`: well-formed, no broader than they say, and enough for the real sites and tools."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from publicsuffixlist import PublicSuffixList

from proxyfw.core.hostname import normalise
from proxyfw.core.pattern import Index, Pattern
from proxyfw.core.problem import Problem
from proxyfw.core.profile import Library, Profile, link, parse_profile

FOLDER = Path(__file__).parents[2] / "profiles"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

# Suffixes under which strangers have names, as the list sees it, and yet all is the owner's. Each with its reason.
OWNED_SUFFIXES = {
    "githubusercontent.com": "on the list to keep cookies apart; only GitHub makes hosts there",
}

REQUIRED = {
    *("github", "pypi", "debian", "fedora", "wikipedia", "npm", "crates", "docker-hub", "google", "youtube", "fastly"),
}

GRANTED = {
    "archlinux": """archlinux.org www.archlinux.org aur.archlinux.org wiki.archlinux.org ping.archlinux.org
        geo.mirror.pkgbuild.com fastly.mirror.pkgbuild.com mirrors.kernel.org""",
    "codeberg": "codeberg.org docs.codeberg.org translate.codeberg.org ci.codeberg.org",
    "crates": """crates.io index.crates.io static.crates.io static.rust-lang.org www.rust-lang.org doc.rust-lang.org
        sh.rustup.rs docs.rs""",
    "debian": """deb.debian.org security.debian.org ftp.de.debian.org debian.map.fastlydns.net snapshot.debian.org
        cdimage.debian.org laotzu.ftp.acc.umu.se packages.debian.org salsa.debian.org www.debian.org""",
    "docker-hub": """registry-1.docker.io auth.docker.io index.docker.io production.cloudflare.docker.com
        production.cloudfront.docker.com hub.docker.com login.docker.com download.docker.com
        docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com""",
    "duckduckgo": """duckduckgo.com html.duckduckgo.com links.duckduckgo.com external-content.duckduckgo.com duck.ai
        cdn.apple-mapkit.com""",
    "fastly": "www.fastly.com docs.fastly.com manage.fastly.com api.fastly.com www.fastlystatus.com fiddle.fastly.dev",
    "fedora": """fedoraproject.org mirrors.fedoraproject.org dl.fedoraproject.org download.fedoraproject.org
        codecs.fedoraproject.org ciscobinary.openh264.org download.copr.fedorainfracloud.org eu.edge.kernel.org
        coresite.mm.fcix.net""",
    "github": """github.com www.github.com api.github.com codeload.github.com uploads.github.com gist.github.com
        docs.github.com npm.pkg.github.com github.githubassets.com raw.githubusercontent.com
        objects.githubusercontent.com release-assets.githubusercontent.com avatars.githubusercontent.com
        camo.githubusercontent.com user-images.githubusercontent.com private-user-images.githubusercontent.com
        pipelines.actions.githubusercontent.com ghcr.io pkg-containers.githubusercontent.com
        github-cloud.githubusercontent.com github-cloud.s3.amazonaws.com
        github-production-user-asset-6210df.s3.amazonaws.com productionresultssa0.blob.core.windows.net
        productionresultssa19.blob.core.windows.net""",
    "gitlab": """gitlab.com registry.gitlab.com docs.gitlab.com assets.gitlab-static.net
        cdn.registry.gitlab-static.net secure.gravatar.com""",
    "google": """google.com www.google.com accounts.google.com mail.google.com drive.google.com docs.google.com
        drive.usercontent.google.com apis.google.com clients6.google.com www.gstatic.com encrypted-tbn0.gstatic.com
        fonts.googleapis.com www.googleapis.com oauth2.googleapis.com lh3.googleusercontent.com
        ci3.googleusercontent.com accounts.youtube.com maps.googleapis.com redirector.gvt1.com""",
    "letsencrypt": """letsencrypt.org acme-v02.api.letsencrypt.org acme-staging-v02.api.letsencrypt.org
        r10.c.lencr.org r10.i.lencr.org""",
    "linux-mirrors": "mirrors.kernel.org mirrors.edge.kernel.org forksystems.mm.fcix.net saimei.ftp.acc.umu.se",
    "mozilla": """www.mozilla.org aus5.mozilla.org addons.mozilla.org developer.mozilla.org support.mozilla.org
        packages.mozilla.org download-installer.cdn.mozilla.net content-signature-2.cdn.mozilla.net
        firefox.settings.services.mozilla.com push.services.mozilla.com accounts.firefox.com detectportal.firefox.com
        assets-prod.sumo.prod.webservices.mozgcp.net safebrowsing.googleapis.com""",
    "npm": """registry.npmjs.org www.npmjs.com static-production.npmjs.com registry.yarnpkg.com repo.yarnpkg.com
        nodejs.org""",
    "pypi": """pypi.org upload.pypi.org test.pypi.org pypi.python.org files.pythonhosted.org
        test-files.pythonhosted.org pypi-camo.freetls.fastly.net bootstrap.pypa.io""",
    "qubes-os": """www.qubes-os.org yum.qubes-os.org deb.qubes-os.org ftp.qubes-os.org forum.qubes-os.org
        mirrors.edge.kernel.org""",
    "stackoverflow": """stackoverflow.com meta.stackoverflow.com math.stackexchange.com serverfault.com superuser.com
        askubuntu.com mathoverflow.net cdn.sstatic.net i.sstatic.net i.stack.imgur.com qa.sockets.stackexchange.com""",
    "ubuntu": """archive.ubuntu.com de.archive.ubuntu.com security.ubuntu.com ports.ubuntu.com esm.ubuntu.com
        keyserver.ubuntu.com contracts.canonical.com api.snapcraft.io canonical-lgw01.cdn.snapcraftcontent.com
        ppa.launchpadcontent.net launchpad.net""",
    "wikipedia": """wikipedia.org en.wikipedia.org de.m.wikipedia.org upload.wikimedia.org auth.wikimedia.org
        login.wikimedia.org commons.wikimedia.org maps.wikimedia.org www.wikidata.org en.wiktionary.org w.wiki""",
    "youtube": """www.youtube.com m.youtube.com music.youtube.com youtu.be www.youtube-nocookie.com i.ytimg.com
        yt3.ggpht.com yt3.googleusercontent.com rr5---sn-4g5e6nsz.googlevideo.com youtubei.googleapis.com
        jnn-pa.googleapis.com accounts.google.com accounts.youtube.com www.gstatic.com""",
}

REFUSED = {
    "codeberg": "someone.codeberg.page",
    "crates": "github.com",
    "docker-hub": "docker.io.evil.example other.r2.cloudflarestorage.com ghcr.io",
    "fastly": "www.fastly.net someone.map.fastly.net someone.global.ssl.fastly.net someone.fastlylb.net pypi.org",
    "fedora": "someone.fedorainfracloud.org someone.fedorapeople.org",
    "github": """evilgithub.com github.com.evil.example github.co gist.github.io someone.github.io github.dev
        github-cloud.s3.amazonaws.com.evil.example github-evil.s3.amazonaws.com evil.github-cloud.s3.amazonaws.com
        productionresultssa20.blob.core.windows.net productionresultssaevil.blob.core.windows.net""",
    "gitlab": "someone.gitlab.io storage.googleapis.com evilgitlab.com",
    "google": """google.com.evil.example evilgoogle.com www.google.evil.example googleusercontent.com
        5.4.3.2.bc.googleusercontent.com someone.appspot.com someone.storage.googleapis.com
        storage.googleapis.com firebasestorage.googleapis.com www.youtube.com www.google-analytics.com""",
    "npm": "github.com npmjs.org.evil.example",
    "pypi": "pypi.org.evil.example evilpypi.org other.freetls.fastly.net pythonhosted.org api.github.com",
    "ubuntu": "private-ppa.launchpadcontent.net evil.canonical.com",
    "wikipedia": "someone.toolforge.org wikipedia.com.evil.example evilwikipedia.org",
    "youtube": "google.com mail.google.com drive.google.com lh4.googleusercontent.com storage.googleapis.com",
}

# Hosts of strangers on shared suffixes: no shipped profile may reach them.
STRANGERS = """
    someone.s3.amazonaws.com someone.execute-api.us-east-1.amazonaws.com someone.cloudfront.net
    someone.blob.core.windows.net someone.azurewebsites.net someone.trafficmanager.net someone.azureedge.net
    someone.akamaized.net someone.edgesuite.net someone.freetls.fastly.net someone.map.fastly.net
    someone.edgecompute.app storage.googleapis.com someone.storage.googleapis.com someone.appspot.com someone.run.app
    5.4.3.2.bc.googleusercontent.com someone.r2.cloudflarestorage.com someone.r2.dev someone.workers.dev
    someone.pages.dev someone.github.io someone.app.github.dev someone.gitlab.io someone.codeberg.page
    someone.netlify.app someone.vercel.app someone.herokuapp.com cdn.jsdelivr.net unpkg.com pastebin.com
    someone.debian.net someone.toolforge.org someone.fedorapeople.org
"""


def source(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


@cache
def written(name: str) -> Any:
    return yaml.safe_load(source(name).read_text(encoding="utf-8"))


def domains(name: str) -> list[str]:
    return list(written(name)["domains"])


def includes(name: str) -> list[str]:
    return list(written(name).get("include", []))


@cache
def library() -> tuple[Library, dict[str, Profile], list[Problem]]:
    profiles, problems = {}, []
    for name in NAMES:
        profile, found = parse_profile(name, source(name).name, source(name).read_text(encoding="utf-8"))
        problems += found
        if profile is not None:
            profiles[name] = profile
    linked, found = link(profiles)
    return linked, profiles, problems + found


def patterns(name: str) -> list[Pattern]:
    return [pattern for profile in library()[0].expand(name) for pattern in profile.domains]


@cache
def index(name: str) -> Index:
    return Index(patterns(name))


def base(text: str) -> str:
    """The fixed part of a pattern: right of the last label with a star, without a leading dot."""
    return re.sub(r"^.*\*[^.]*", "", text).removeprefix(".")


def cases(table: Mapping[str, str]) -> list[object]:
    return [pytest.param(name, host, id=f"{name}: {host}") for name, hosts in table.items() for host in hosts.split()]


every_profile = pytest.mark.parametrize("name", NAMES)


def test_the_profiles_that_must_be_there_are_there() -> None:
    assert set(NAMES) >= REQUIRED


def test_each_profile_has_a_row_of_real_hosts_below() -> None:
    assert sorted(GRANTED) == NAMES


def test_all_of_them_parse_and_link_without_an_error() -> None:
    assert [str(problem) for problem in library()[2] if not problem.warning] == []
    assert sorted(library()[1]) == NAMES


def test_the_only_warnings_are_about_suffixes_known_to_be_the_owners() -> None:
    warnings = [str(problem) for problem in library()[2] if problem.warning]
    assert [text for text in warnings if not any(suffix in text for suffix in OWNED_SUFFIXES)] == []


def test_only_yaml_files_are_shipped_and_the_names_are_lower_case() -> None:
    assert [
        path.name for path in FOLDER.iterdir() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.yaml", path.name)
    ] == []


@every_profile
def test_the_keys_are_a_description_domains_and_perhaps_includes(name: str) -> None:
    assert {"description", "domains"} <= set(written(name)) <= {"description", "domains", "include"}


@every_profile
def test_the_description_is_one_line(name: str) -> None:
    description = written(name)["description"]
    assert isinstance(description, str)
    assert description == " ".join(description.split())
    assert 20 <= len(description) <= 120


@every_profile
def test_the_file_says_where_its_list_comes_from(name: str) -> None:
    assert re.match(r"# Source: .*https://", source(name).read_text(encoding="utf-8"))


@every_profile
def test_patterns_are_plain_lower_case_names_for_the_usual_ports(name: str) -> None:
    assert [text for text in domains(name) if not re.fullmatch(r"[a-z0-9*.-]+", text)] == []


@every_profile
def test_no_pattern_stands_twice(name: str) -> None:
    assert len(set(domains(name))) == len(domains(name))


@every_profile
def test_includes_exist_and_their_patterns_are_not_repeated(name: str) -> None:
    assert set(includes(name)) <= set(NAMES) - {name}
    included = {text for other in includes(name) for text in domains(other)}
    assert included & set(domains(name)) == set()


@every_profile
def test_no_pattern_is_covered_by_another(name: str) -> None:
    everything = patterns(name)
    covered = [
        pattern.text
        for pattern in everything
        if Index([other for other in everything if other is not pattern]).find(
            normalise(base(pattern.text)), "tcp", 443
        )
    ]
    assert covered == []


@every_profile
def test_no_public_suffix_under_a_wildcard(name: str) -> None:
    everyone = PublicSuffixList(only_icann=True)
    with_private_section = PublicSuffixList()
    wide = [base(text) for text in domains(name) if text.startswith(".") or "*" in text]
    assert [suffix for suffix in wide if not everyone.is_private(suffix)] == []
    assert {suffix for suffix in wide if not with_private_section.is_private(suffix)} <= set(OWNED_SUFFIXES)


def test_each_exception_for_a_suffix_is_in_use() -> None:
    assert {base(text) for name in NAMES for text in domains(name) if base(text) in OWNED_SUFFIXES} == set(
        OWNED_SUFFIXES
    )


@every_profile
def test_a_name_with_something_glued_to_either_end_is_refused(name: str) -> None:
    look_alikes = [fake for text in domains(name) for fake in (f"evil{base(text)}", f"{base(text)}.evil.example")]
    assert [fake for fake in look_alikes if index(name).find(normalise(fake), "tcp", 443)] == []


@every_profile
def test_strangers_on_shared_hosts_are_refused(name: str) -> None:
    assert [host for host in STRANGERS.split() if index(name).find(normalise(host), "tcp", 443)] == []


@pytest.mark.parametrize(("name", "host"), cases(GRANTED))
def test_real_hosts_are_granted_on_the_usual_ports_alone(name: str, host: str) -> None:
    usual = [("tcp", 80), ("tcp", 443), ("udp", 443)]
    others = [("tcp", 22), ("tcp", 8443), ("udp", 53), ("udp", 80)]
    assert [port for port in usual + others if index(name).find(normalise(host), *port)] == usual


@pytest.mark.parametrize(("name", "host"), cases(REFUSED))
def test_look_alikes_and_neighbours_are_refused(name: str, host: str) -> None:
    for transport, port in (("tcp", 80), ("tcp", 443), ("udp", 443)):
        assert index(name).find(normalise(host), transport, port) is None
