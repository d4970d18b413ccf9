import json

from django.db import migrations, models


def from_outcomes(apps, schema_editor):
    """The makes that outcomes told of before they had a column of their own."""
    attempt = apps.get_model("submissions", "Attempt")
    for row in attempt.objects.exclude(outcome="").only("pk", "outcome").iterator(chunk_size=20):
        try:
            facts = json.loads(row.outcome).get("environment", {})
        except (ValueError, AttributeError):
            continue
        found = str(facts.get("accelerator") or facts.get("processor") or "") if isinstance(facts, dict) else ""
        found = found.replace("\0", "")[:120]
        if found:
            attempt.objects.filter(pk=row.pk).update(make=found)


class Migration(migrations.Migration):
    dependencies = [
        ("submissions", "0004_index_of_identical_code"),
    ]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="make",
            field=models.CharField(blank=True, default="", max_length=120),
        ),
        migrations.RunPython(from_outcomes, migrations.RunPython.noop),
    ]
