"""Settings of the control plane. Everything runs on the defaults; the environment moves it to other services.

    DATABASE_URL             default: SQLite in var/swapbench.sqlite3
    SWAPBENCH_BROKER_URL     default: filesystem:// under var/broker; redis://... and amqp://... work the same
    SWAPBENCH_FORGE          "local" (default, at SWAPBENCH_LOCAL_FORGE) or "github", which needs SWAPBENCH_GITHUB_...
                             REPOSITORY, APP_ID, PRIVATE_KEY and WEBHOOK_SECRET; HOST and API for GitHub Enterprise
    SWAPBENCH_VAR            folder of runtime state, default: var/ of the checkout
    SWAPBENCH_DEBUG          "1" for Django's debug pages
    SWAPBENCH_SECRET_KEY     or SWAPBENCH_SECRET_KEY_FILE; generated into var/secret-key where neither is set
    SWAPBENCH_ALLOWED_HOSTS  comma-separated
    SWAPBENCH_ORIGIN         the address that people reach the site by
    SWAPBENCH_POLICY         JSON object that overrides fields of POLICY below

A variable X that names a secret may be given as X_FILE, the path of a file that holds it.
"""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy as _

from workers.protocol import celery_settings

ROOT = Path(__file__).resolve().parents[2]
VAR = Path(os.environ.get("SWAPBENCH_VAR") or ROOT / "var").resolve()


def _secret(name: str) -> str:
    """The secret `name` from the environment, or from the file that `name`_FILE names; "" where neither is set."""
    path = os.environ.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE names {path}, which cannot be read: {error.strerror}.") from None
    return os.environ.get(name, "")


def _local_secret_key() -> str:
    """A key that is made once and kept under var/, so that sessions survive a restart of a local instance."""
    path = VAR / "secret-key"
    VAR.mkdir(parents=True, exist_ok=True)
    fresh = VAR / f"secret-key.{os.getpid()}"
    if not path.exists():
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe(50), encoding="utf-8")
        with suppress(FileExistsError):  # Another process made it first; its key is as good.
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text(encoding="utf-8").strip()


def _json_object(name: str) -> dict[str, object]:
    text = os.environ.get(name, "").strip() or "{}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must be a JSON object; it is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ImproperlyConfigured(f"{name} must be a JSON object, such as {{}}.")
    return value


DEBUG = os.environ.get("SWAPBENCH_DEBUG") == "1"
SECRET_KEY = _secret("SWAPBENCH_SECRET_KEY") or _local_secret_key()
SWAPBENCH_ORIGIN = os.environ.get("SWAPBENCH_ORIGIN", "http://127.0.0.1:8000").rstrip("/")
ALLOWED_HOSTS = [
    host.strip()
    for host in os.environ.get("SWAPBENCH_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]").split(",")
    if host.strip()
]
CSRF_TRUSTED_ORIGINS = [SWAPBENCH_ORIGIN]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "swapbench",
    "swapbench.submissions",
    "swapbench.intake",
    "swapbench.mergequeue",
    "swapbench.reports",
    "swapbench.web",
    "swapbench.api",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "swapbench.urls"
WSGI_APPLICATION = "swapbench.wsgi.application"
ASGI_APPLICATION = "swapbench.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.debug",
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": dj_database_url.parse(
        os.environ.get("DATABASE_URL") or f"sqlite:///{VAR / 'swapbench.sqlite3'}",
        conn_max_age=60,
        conn_health_checks=True,
    )
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # IMMEDIATE takes the write lock at BEGIN, where SQLite waits for it; a read that turns into a write cannot wait
    # and fails with "database is locked" (444 of 600 tries; 0 this way).
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 30,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=30000;",
    }
    _database = Path(DATABASES["default"]["NAME"])
    if _database.is_absolute():
        _database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes of a test need one file; an in-memory database would be another one for each.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR / f"test-{os.getpid()}.sqlite3")}
else:
    DATABASES["default"]["TEST"] = {"NAME": f"test_swapbench_{os.getpid()}"}

LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("zh-hans", _("Simplified Chinese"))]
LOCALE_PATHS = [ROOT / "locale"]
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = VAR / "static"
# Without DEBUG and without a `collectstatic` run, whitenoise serves the apps' own files.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
STATIC_ROOT.mkdir(parents=True, exist_ok=True)

LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/maintain"
CSRF_FAILURE_VIEW = "swapbench.web.views.site.forgery"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_ENGINE = "swapbench.web.sessions"
SESSION_COOKIE_HTTPONLY = True
_HTTPS = SWAPBENCH_ORIGIN.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
if _HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 30 * 24 * 3600

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        # The pages that Plotly draws on allow style attributes besides (web/views/tracks.py).
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "object-src": ["'none'"],
    }
}

# A webhook delivery of GitHub has at most 25 MB; what is larger is refused before it is read.
DATA_UPLOAD_MAX_MEMORY_SIZE = 25 * 1024 * 1024

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("SWAPBENCH_LOG", "INFO")},
}

# --- Swapbench's own -------------------------------------------------------------------------------------------------

CELERY = celery_settings(os.environ, ROOT)
SWAPBENCH_FORGE = os.environ.get("SWAPBENCH_FORGE") or "local"
SWAPBENCH_LOCAL_FORGE = Path(os.environ.get("SWAPBENCH_LOCAL_FORGE") or VAR / "forge.git").resolve()
SWAPBENCH_BRANCH = os.environ.get("SWAPBENCH_BRANCH") or "main"
SWAPBENCH_GITHUB = {
    "repository": os.environ.get("SWAPBENCH_GITHUB_REPOSITORY", ""),
    "app_id": os.environ.get("SWAPBENCH_GITHUB_APP_ID", ""),
    "installation_id": os.environ.get("SWAPBENCH_GITHUB_INSTALLATION_ID", ""),
    "private_key": _secret("SWAPBENCH_GITHUB_PRIVATE_KEY"),
    "webhook_secret": _secret("SWAPBENCH_GITHUB_WEBHOOK_SECRET"),
    "host": os.environ.get("SWAPBENCH_GITHUB_HOST") or "https://github.com",
    "api": os.environ.get("SWAPBENCH_GITHUB_API") or "https://api.github.com",
}
SWAPBENCH_POLICY = _json_object("SWAPBENCH_POLICY")
"""Overrides of fields of `swapbench.submissions.policy.ControlPolicy`, whose docstring says what each means."""
