"""The Celery app of the control plane: it sends jobs, and its worker takes what judge workers say.

    celery -A swapbench.celery worker -Q control --pool solo

`manage.py control` runs that worker beside the scheduler; its tasks are in `swapbench.control.tasks`.
"""

import os

from celery import Celery
from django.conf import settings

from workers import folderbroker
from workers.protocol import JUDGE_TASK, judge_queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "swapbench.settings")
folderbroker.install()
app = Celery("swapbench-control", include=["swapbench.control.tasks"])
app.conf.update(settings.CELERY)


def send_job(machine_class: str, job: str, expires: float) -> None:
    """Gives a job to the workers of a machine class."""
    app.send_task(JUDGE_TASK, args=[job], queue=judge_queue(machine_class), expires=expires, retry=False)
