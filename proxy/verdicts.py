"""What `oxy check` says of what it saw, and what to do about it: words alone, no I/O."""

import json
import ssl

from proxy.values import Target

SLOW = "Calls will be as slow. Look at the way from here to there; DNS and a proxy in between are the usual suspects."
TOO_FEW = "Take a model that answers at once: one that thinks first may spend all that it may say on that."
BUFFERED = (
    "Something on the way keeps pieces back until it has many. nginx: proxy_buffering off and no gzip; others: "
    "docs/deployment.md. Ask without --through as well: what comes one by one there is kept back in front of Oxy."
)
CUT = (
    "Something on the way cuts what is silent, as a model is that thinks. Raise its idle or read timeout to that of "
    "Oxy, ten minutes; nginx: proxy_read_timeout 600s."
)

UNREACHED = "Look at host and port in HTTPS_PROXY (or ALL_PROXY), and whether this machine may reach them."

# OpenSSL's X509_V_ERR_*.
EXPIRED = (9, 10)
UNVOUCHED = (18, 19, 20, 21)
MISNAMED = (62, 64)


class Trouble(Exception):
    """Something is wrong: what was seen, and what to do about it."""

    def __init__(self, said: str, advice: str) -> None:
        super().__init__(said)
        self.advice = advice


def of_tcp(problem: OSError, target: Target) -> Trouble:
    """Return what it means that no connection came about."""
    what = f"{target.host} port {target.port}"
    if isinstance(problem, ConnectionRefusedError):
        return Trouble(f"{what} refuses", "Nothing listens there: look at the port, and whether it has been started.")
    return Trouble(
        f"{what} cannot be reached: {(problem.strerror or 'no route').lower()}",
        "A firewall, or no way out of this network: if it needs a proxy to get out, set HTTPS_PROXY.",
    )


def of_tls(problem: OSError, target: Target) -> Trouble:
    """Return what it means that a handshake failed."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return Trouble(f"not believed: {problem.verify_message}", _about_certificate(problem.verify_code, target))
    if isinstance(problem, ssl.SSLError):
        return Trouble(
            f"what listens on port {target.port} does not speak TLS as we do",
            "Is it http:// instead of https://, or another port?",
        )
    return Trouble(
        "the connection was closed in the handshake",
        "A firewall that looks at names in TLS does so; so does a server that knows no such name.",
    )


def of_proxy(said: str, target: Target) -> Trouble:
    """Return what it means that an outbound proxy opened no tunnel; `said` is its status, or how it failed."""
    if said == "407":
        what, advice = ANSWERS[407]
        return Trouble(f"407: {what}", advice)
    if said.isdigit():
        advice = f"It lets through what it knows: {target.host} port {target.port} has to be allowed there."
        return Trouble(f"the outbound proxy opens no way: {said}", advice)
    return Trouble(f"the outbound proxy {said}", "Is what listens at HTTPS_PROXY (or ALL_PROXY) a proxy for HTTP?")


def _about_certificate(code: int, target: Target) -> str:
    if code in UNVOUCHED:
        return (
            "If an authority of your own signs here (a private upstream, a box that looks into TLS), name its file in "
            "PROXY_UPSTREAM_CA."
        )
    if code in EXPIRED:
        return "Look at this machine's clock; if it is right, the certificate there has to be renewed."
    if code in MISNAMED:
        return f"The certificate is for another name than {target.host}: write the one that it is for."
    return "Look at the certificate with: openssl s_client -connect " + f"{target.host}:{target.port}"


def of_status(
    status: int, text: bytes, *, key: str, ours: bool, signed: bool, model: str | None = None
) -> Trouble | None:
    """Return what is wrong with an answer, None for nothing. An unsigned call is to be asked for a key."""
    if status == 401 and not (ours and by_oxy(text)) and not signed:
        return None
    if 200 <= status <= 299:
        return None
    if status == 404 and model is not None:
        return Trouble(f"404: there is no model {model} for this key", "Name one that the key may use.")
    said, advice = ANSWERS.get(status) or ANSWERS[status // 100]
    return Trouble(f"{status}: {said.format(key=key)}", advice.format(key=key))


def of_version(status: int, version: str) -> Trouble:
    """Return what it means that Azure has no list of models."""
    return Trouble(
        f"{status}: there is nothing for api-version {version}",
        "Look at OPENAI_API_VERSION, which Azure has to know, and at OXY_TARGET: https://RESOURCE.openai.azure.com.",
    )


def of_deployment(model: str, deployment: str) -> Trouble:
    """Return what it means that Azure has no such deployment."""
    return Trouble(
        f"404: there is no deployment {deployment} for {model}",
        "Look at PROXY_AZURE_DEPLOYMENTS, and at the deployment's name in Azure; a new one takes some minutes.",
    )


def by_oxy(text: bytes) -> bool:
    """Tell whether a refusal is the proxy's own."""
    try:
        return bool(json.loads(text) == {"error": "unauthorized"})
    except ValueError:
        return False


# By status, else by its first digit.
ANSWERS = {
    401: (
        "{key} is refused",
        "Take another one. A value in the environment beats those in .env.local and .env: see which one is in force.",
    ),
    403: (
        "{key} is known, and not allowed this",
        "Look at the key's permissions (a restricted one may not list models), its project, and the country of this "
        "machine.",
    ),
    404: ("there is no /v1/models", "Look at the path in OXY_TARGET; /v1 at its end may be there or not."),
    407: ("the outbound proxy asks for a name and password", "Write them into HTTPS_PROXY: http://name:password@host."),
    429: ("{key} is known, its limits or its credit are used up", "Look at the account's limits and its billing."),
    3: ("it leads elsewhere", "Write the address that it leads to; Oxy follows no redirects."),
    4: ("the call is refused", "Look at what stands at that address: is it the API, and the right version of it?"),
    5: ("it is not well", "Try again. If it stays so: the status page of the API, the log of what stands before it."),
}
