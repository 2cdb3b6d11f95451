"""Hosts that the shipped profiles are measured with: real ones, look-alikes, and those that anyone can have."""

# Where strangers have hosts: domain as registered -> the hosts there that are an owner's, each with its reason.
SHARED: dict[str, dict[str, str]] = {
    "amazonaws.com": {r"github-(cloud|production-[a-z-]+-[0-9a-f]{6})\.s3": "GitHub's buckets"},
    "windows.net": {
        r"productionresultssa1?\d\.blob\.core": "GitHub's accounts for Actions",
        r"(maven|npm|nuget|rubygems)registryv2prod\.blob\.core": "GitHub's accounts for packages",
        r"vscode\.search": "Azure Search of Visual Studio Code",
    },
    "trafficmanager.net": {r"vscode-sync(-insiders)?": "Settings Sync of Visual Studio Code"},
    "cloudflarestorage.com": {r"docker-images-prod\.[0-9a-f]{32}\.r2": "Docker's bucket"},
    "fastly.net": {r"pypi-camo\.freetls": "pictures on PyPI"},
    "fastlydns.net": {r"debian\.map": "the name that deb.debian.org's SRV record gives"},
    "fedorainfracloud.org": {r"(download\.)?copr": "Copr itself"},
    "googleapis.com": {r"(?!storage|firebasestorage)[a-z0-9-]+": "an API each, but for storage"},
    "googleusercontent.com": {
        r"(lh\d|lh7-rt|lh7-us|ci\d|yt\d|clients2|mail-attachment)": "pictures, attachments, extensions of Chrome"
    },
    "githubusercontent.com": {r"([a-z0-9-]+|actions)": "on the list to keep cookies apart; the hosts are GitHub's"},
    "claudeusercontent.com": {r"(bridge|www)": "on the list for the same reason; the hosts are Anthropic's"},
    "oaiusercontent.com": {r"(files|sdmntpr[a-z0-9]+|web-sandbox)": "the same with OpenAI"},
    "visualstudio.com": {r"(marketplace|(update\.)?code)": "Microsoft's own"},
    "element.io": {r"(|www|app|mobile|packages|call|meet)": "Element's own; others are sold"},
    "imgur.com": {r"i\.stack": "pictures of Stack Exchange"},
    "cloudflare.com": {r"challenges": '"not a robot"'},
    "auth0.com": {r"cdn": "scripts of a sign-in page"},
}

# The same, with no host that a shipped profile needs.
ANYONE = """
    akamaihd.net akamaized.net akamaiedge.net edgesuite.net edgekey.net azureedge.net azurefd.net azurewebsites.net
    cloudapp.net azure.com cloudfront.net awsapprunner.com elasticbeanstalk.com appspot.com run.app
    cloudfunctions.net firebaseapp.com web.app withgoogle.com blogspot.com translate.goog github.io github.dev
    githubpreview.dev gitlab.io codeberg.page netlify.app netlify.com vercel.app now.sh herokuapp.com pages.dev
    workers.dev r2.dev trycloudflare.com fastlylb.net edgecompute.app b-cdn.net bunnycdn.com hf.space
    huggingface.cloud livekit.cloud devtunnels.ms ngrok.io ngrok.app readthedocs.io readthedocs-hosted.com
    sharepoint.com digitaloceanspaces.com ondigitalocean.app backblazeb2.com wasabisys.com supabase.co fly.dev
    onrender.com railway.app deno.dev glitch.me repl.co replit.app surge.sh toolforge.org wmcloud.org wmflabs.org
    debian.net fedorapeople.org chatgpt.site claude.site jetbrains.space myjetbrains.com youtrack.cloud datalore.io
    ems.host modular.im jsdelivr.net unpkg.com cdnjs.com pastebin.com telegra.ph graph.org archive.ph gravatar.io
    auth0app.com okta.com zendesk.com vscode-unpkg.net launchpadusercontent.net
"""

# What the main programs ask for, on the usual ports.
GRANTED = {
    "anthropic": """api.anthropic.com console.anthropic.com claude.ai downloads.claude.ai platform.claude.com
        code.claude.com bridge.claudeusercontent.com www.claudeusercontent.com""",
    "arch": """archlinux.org www.archlinux.org aur.archlinux.org wiki.archlinux.org ping.archlinux.org
        geo.mirror.pkgbuild.com fastly.mirror.pkgbuild.com mirrors.kernel.org""",
    "archive.org": "archive.org web.archive.org ia800300.us.archive.org s3.us.archive.org openlibrary.org",
    "archlinux": "archlinux.org geo.mirror.pkgbuild.com",
    "codeberg": "codeberg.org docs.codeberg.org translate.codeberg.org ci.codeberg.org",
    "crates": """crates.io index.crates.io static.crates.io static.rust-lang.org www.rust-lang.org
        doc.rust-lang.org sh.rustup.rs docs.rs""",
    "debian": """deb.debian.org security.debian.org ftp.de.debian.org debian.map.fastlydns.net snapshot.debian.org
        cdimage.debian.org laotzu.ftp.acc.umu.se packages.debian.org salsa.debian.org www.debian.org
        2s4yqjx5ul6okpp3f2gaunr2syex5jgbfpfvhxxbbjwnrsvbk5v3qbid.onion""",
    "docker-hub": """registry-1.docker.io auth.docker.io index.docker.io production.cloudflare.docker.com
        production.cloudfront.docker.com hub.docker.com login.docker.com download.docker.com
        docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com""",
    "duckduckgo": """duckduckgo.com html.duckduckgo.com links.duckduckgo.com external-content.duckduckgo.com
        duck.ai cdn.apple-mapkit.com""",
    "element": """app.element.io packages.element.io call.element.io scalar.vector.im vector.im
        matrix-client.matrix.org""",
    "fastly": "www.fastly.com docs.fastly.com manage.fastly.com api.fastly.com www.fastlystatus.com",
    "fedora": """fedoraproject.org mirrors.fedoraproject.org dl.fedoraproject.org download.fedoraproject.org
        codecs.fedoraproject.org ciscobinary.openh264.org download.copr.fedorainfracloud.org eu.edge.kernel.org
        coresite.mm.fcix.net""",
    "ghcr": "ghcr.io pkg-containers.githubusercontent.com",
    "github": """github.com www.github.com api.github.com codeload.github.com uploads.github.com gist.github.com
        docs.github.com npm.pkg.github.com github.githubassets.com raw.githubusercontent.com
        objects.githubusercontent.com release-assets.githubusercontent.com avatars.githubusercontent.com
        camo.githubusercontent.com user-images.githubusercontent.com private-user-images.githubusercontent.com
        pipelines.actions.githubusercontent.com ghcr.io pkg-containers.githubusercontent.com
        github-cloud.githubusercontent.com github-cloud.s3.amazonaws.com npmregistryv2prod.blob.core.windows.net
        github-production-user-asset-6210df.s3.amazonaws.com productionresultssa0.blob.core.windows.net
        productionresultssa19.blob.core.windows.net""",
    "gitlab": """gitlab.com registry.gitlab.com docs.gitlab.com assets.gitlab-static.net
        cdn.registry.gitlab-static.net secure.gravatar.com""",
    "gmail": "gmail.com mail.google.com accounts.google.com oauth2.googleapis.com www.googleapis.com",
    "go": """proxy.golang.org sum.golang.org index.golang.org golang.org go.dev pkg.go.dev vuln.go.dev
        dl.google.com""",
    "google": """google.com www.google.com accounts.google.com mail.google.com drive.google.com docs.google.com
        drive.usercontent.google.com apis.google.com clients6.google.com www.gstatic.com encrypted-tbn0.gstatic.com
        fonts.googleapis.com www.googleapis.com oauth2.googleapis.com lh3.googleusercontent.com
        ci3.googleusercontent.com accounts.youtube.com maps.googleapis.com redirector.gvt1.com""",
    "huggingface": """huggingface.co router.huggingface.co cdn-lfs.huggingface.co hf.co cdn-lfs-us-1.hf.co
        us.aws.cdn.hf.co cas-server.xethub.hf.co transfer.xethub-eu.hf.co""",
    "jetbrains": """www.jetbrains.com account.jetbrains.com plugins.jetbrains.com
        downloads.marketplace.jetbrains.com download.jetbrains.com download-cdn.jetbrains.com
        cloudconfig.jetbrains.com cache-redirector.jetbrains.com resources.jetbrains.com api.jetbrains.ai
        kotlinlang.org""",
    "keyservers": "keys.openpgp.org keyserver.ubuntu.com",
    "letsencrypt": """letsencrypt.org acme-v02.api.letsencrypt.org acme-staging-v02.api.letsencrypt.org
        r10.c.lencr.org r10.i.lencr.org""",
    "linux-mirrors": "mirrors.kernel.org mirrors.edge.kernel.org forksystems.mm.fcix.net saimei.ftp.acc.umu.se",
    "matrix": """matrix.org matrix-client.matrix.org account.matrix.org livekit-jwt.call.matrix.org vector.im
        matrix.to""",
    "mozilla": """www.mozilla.org aus5.mozilla.org addons.mozilla.org developer.mozilla.org support.mozilla.org
        packages.mozilla.org download-installer.cdn.mozilla.net content-signature-2.cdn.mozilla.net
        token.services.mozilla.com sync-1-us-west1-g.sync.services.mozilla.com versioncheck.addons.mozilla.org
        firefox.settings.services.mozilla.com push.services.mozilla.com accounts.firefox.com
        detectportal.firefox.com assets-prod.sumo.prod.webservices.mozgcp.net safebrowsing.googleapis.com""",
    "npm": """registry.npmjs.org www.npmjs.com static-production.npmjs.com registry.yarnpkg.com repo.yarnpkg.com
        nodejs.org""",
    "ntp": "",
    "openai": """api.openai.com auth.openai.com platform.openai.com chatgpt.com ab.chatgpt.com cdn.oaistatic.com
        files.oaiusercontent.com sdmntprwestus.oaiusercontent.com web-sandbox.oaiusercontent.com
        challenges.cloudflare.com""",
    "protonmail": """mail.proton.me account.proton.me mail-api.proton.me calendar.proton.me proton.me
        api.protonmail.ch mail.protonmail.com""",
    "pypi": """pypi.org upload.pypi.org test.pypi.org pypi.python.org files.pythonhosted.org
        test-files.pythonhosted.org pypi-camo.freetls.fastly.net bootstrap.pypa.io""",
    "qubes": """www.qubes-os.org yum.qubes-os.org deb.qubes-os.org debu.qubes-os.org ftp.qubes-os.org
        keys.qubes-os.org doc.qubes-os.org forum.qubes-os.org mirrors.edge.kernel.org
        yum.qubesosfasa4zl44o4tws22di6kepyzfeqv3tg4e3ztknltfxqrymdad.onion""",
    "qubes-os": "yum.qubes-os.org deb.qubes-os.org",
    "rubygems": "rubygems.org index.rubygems.org api.rubygems.org guides.rubygems.org bundler.io cache.ruby-lang.org",
    "signal": """chat.signal.org grpc.chat.signal.org storage.signal.org cdn.signal.org cdn3.signal.org
        cdsi.signal.org svr2.signal.org contentproxy.signal.org sfu.voip.signal.org updates.signal.org
        signalcaptchas.org signal.group""",
    "stackoverflow": """stackoverflow.com meta.stackoverflow.com math.stackexchange.com serverfault.com
        superuser.com askubuntu.com mathoverflow.net cdn.sstatic.net i.sstatic.net i.stack.imgur.com
        qa.sockets.stackexchange.com""",
    "telegram": """web.telegram.org zws2-1.web.telegram.org td.telegram.org core.telegram.org t.me
        cdn4.cdn-telegram.org cdn4.telesco.pe""",
    "ubuntu": """archive.ubuntu.com de.archive.ubuntu.com security.ubuntu.com ports.ubuntu.com esm.ubuntu.com
        keyserver.ubuntu.com contracts.canonical.com api.snapcraft.io canonical-lgw01.cdn.snapcraftcontent.com
        ppa.launchpadcontent.net launchpad.net""",
    "vscode": """update.code.visualstudio.com code.visualstudio.com vscode.download.prss.microsoft.com
        packages.microsoft.com marketplace.visualstudio.com ms-python.gallery.vsassets.io
        ms-python.gallerycdn.vsassets.io main.vscode-cdn.net vscode-sync.trafficmanager.net""",
    "whonix": """www.whonix.org deb.whonix.org download.whonix.org deb.kicksecure.com forums.kicksecure.com
        dist.torproject.org deb.torproject.org deb.debian.org
        deb.dds6qkxpwdeubwucdiaord2xgbbeyds25rbsgr73tbfpqpt4a6vjwsyd.onion""",
    "wikipedia": """wikipedia.org en.wikipedia.org de.m.wikipedia.org upload.wikimedia.org auth.wikimedia.org
        login.wikimedia.org commons.wikimedia.org maps.wikimedia.org www.wikidata.org en.wiktionary.org w.wiki""",
    "youtube": """www.youtube.com m.youtube.com music.youtube.com youtu.be www.youtube-nocookie.com i.ytimg.com
        yt3.ggpht.com yt3.googleusercontent.com rr5---sn-4g5e6nsz.googlevideo.com youtubei.googleapis.com
        jnn-pa.googleapis.com accounts.google.com accounts.youtube.com www.gstatic.com""",
}

# Programs that need another port: name, port.
ON_PORTS = {
    "arch": "aur.archlinux.org:22",
    "codeberg": "codeberg.org:22",
    "debian": "salsa.debian.org:22",
    "element": "turn.matrix.org:3478/udp",
    "github": "github.com:22 gist.github.com:22 ssh.github.com:443",
    "gitlab": "gitlab.com:22 altssh.gitlab.com:443",
    "gmail": "imap.gmail.com:993 pop.gmail.com:995 smtp.gmail.com:465 smtp.gmail.com:587",
    "huggingface": "hf.co:22",
    "keyservers": "keyserver.ubuntu.com:11371",
    "matrix": "turn.matrix.org:3478 turn.matrix.org:3478/udp",
    "ntp": """pool.ntp.org:123/udp 2.debian.pool.ntp.org:123/udp 2.fedora.pool.ntp.org:123/udp
        0.arch.pool.ntp.org:123/udp 0.qubes.pool.ntp.org:123/udp de.pool.ntp.org:123/udp ntp.ubuntu.com:123/udp
        1.ntp.ubuntu.com:123/udp 1.ntp.ubuntu.com:4460 ntp-bootstrap.ubuntu.com:123/udp
        ntp-bootstrap.ubuntu.com:4460""",
    "signal": "turn3.voip.signal.org:80 turn3.voip.signal.org:3478/udp turn3.voip.signal.org:443/udp",
    "ubuntu": "git.launchpad.net:22 keyserver.ubuntu.com:11371",
    "whonix": "salsa.debian.org:22",
}

REFUSED = {
    "anthropic": """someone.claude.site x.frame.claudeusercontent.com claudeusercontent.com storage.googleapis.com
        o1.ingest.sentry.io evilclaude.ai""",
    "archive.org": "archive.ph archive.org.evil.example",
    "codeberg": "someone.codeberg.page",
    "crates": "github.com",
    "debian": "evil.onion someone.debian.net other.map.fastlydns.net",
    "docker-hub": "docker.io.evil.example other.r2.cloudflarestorage.com ghcr.io",
    "element": "customer.element.io someone.ems.host turn.matrix.org.evil.example posthog.element.io",
    "fastly": "www.fastly.net someone.map.fastly.net someone.global.ssl.fastly.net someone.fastlylb.net pypi.org",
    "fedora": "someone.fedorainfracloud.org someone.fedorapeople.org",
    "github": """evilgithub.com github.com.evil.example github.co gist.github.io someone.github.io github.dev
        github-cloud.s3.amazonaws.com.evil.example github-evil.s3.amazonaws.com evil.github-cloud.s3.amazonaws.com
        someone.githubusercontent.com githubusercontent.com api.githubcopilot.com
        productionresultssa20.blob.core.windows.net productionresultssaevil.blob.core.windows.net""",
    "gitlab": "someone.gitlab.io storage.googleapis.com evilgitlab.com",
    "ghcr": "github.com docker.io raw.githubusercontent.com",
    "gmail": "imap.gmail.com.evil.example evilgmail.com www.youtube.com",
    "go": "storage.googleapis.com github.com www.google.com gopkg.in",
    "google": """google.com.evil.example evilgoogle.com www.google.evil.example googleusercontent.com
        5.4.3.2.bc.googleusercontent.com someone.appspot.com someone.storage.googleapis.com storage.googleapis.com
        firebasestorage.googleapis.com www.youtube.com www.google-analytics.com""",
    "huggingface": "someone.hf.space x.us-east-1.aws.endpoints.huggingface.cloud evilhf.co",
    "jetbrains": "someone.jetbrains.space someone.youtrack.cloud someone.myjetbrains.com repo1.maven.org",
    "keyservers": "evil.ubuntu.com",
    "matrix": "someone.modular.im evilmatrix.org element.io scalar.vector.im",
    "npm": "github.com npmjs.org.evil.example",
    "ntp": "ntp.org time.google.com archive.ubuntu.com ntp.ubuntu.com 0.pool.ntp.org",
    "openai": """someone.chatgpt.site someone.oaiusercontent.com evil.blob.core.windows.net chatgpt.livekit.cloud
        someone.openai.azure.com www.cloudflare.com""",
    "protonmail": "simplelogin.io evilproton.me dns.google",
    "pypi": "pypi.org.evil.example evilpypi.org other.freetls.fastly.net pythonhosted.org api.github.com",
    "rubygems": "github.com rubygems.global.ssl.fastly.net someone.s3-us-west-2.amazonaws.com",
    "signal": "turn.cloudflare.com evilsignal.org signal.org.evil.example",
    "stackoverflow": "cdnjs.cloudflare.com github.com evil.imgur.com",
    "telegram": "telegra.ph graph.org evilt.me someone.t.me",
    "ubuntu": "private-ppa.launchpadcontent.net evil.canonical.com",
    "vscode": """someone.visualstudio.com someone.devtunnels.ms raw.githubusercontent.com evil.search.windows.net
        evil.trafficmanager.net someone.vscode-unpkg.net""",
    "whonix": "evil.onion torproject.net",
    "wikipedia": "someone.toolforge.org wikipedia.com.evil.example evilwikipedia.org",
    "youtube": "google.com mail.google.com drive.google.com lh4.googleusercontent.com storage.googleapis.com",
}

# Hosts of strangers on shared suffixes: no shipped profile may reach them.
STRANGERS = """
    someone.s3.amazonaws.com someone.execute-api.us-east-1.amazonaws.com ec2-1-2-3-4.compute-1.amazonaws.com
    someone.cloudfront.net someone.blob.core.windows.net someone.azurewebsites.net someone.trafficmanager.net
    someone.azureedge.net someone.visualstudio.com someone.devtunnels.ms someone.akamaized.net someone.edgesuite.net
    someone.freetls.fastly.net someone.map.fastly.net someone.edgecompute.app storage.googleapis.com
    someone.storage.googleapis.com firebasestorage.googleapis.com someone.appspot.com someone.run.app someone.web.app
    5.4.3.2.bc.googleusercontent.com someone.r2.cloudflarestorage.com someone.r2.dev someone.workers.dev
    someone.pages.dev someone.trycloudflare.com someone.github.io someone.app.github.dev someone.gitlab.io
    someone.codeberg.page someone.netlify.app someone.vercel.app someone.herokuapp.com someone.hf.space
    someone.element.io someone.jetbrains.space someone.livekit.cloud cdn.jsdelivr.net unpkg.com cdnjs.cloudflare.com
    pastebin.com telegra.ph someone.debian.net someone.toolforge.org someone.fedorapeople.org someone.onion
"""
