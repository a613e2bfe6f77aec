"""The slow tests that `make test` runs too: one of each kind. `make test-slow` runs the others."""

from __future__ import annotations

import pytest

SMOKE = (
    "tests/e2e/test_pipeline.py::test_one_version_is_registered_with_its_origin_and_aliases",
    "tests/e2e/test_pipeline.py::test_version_in_mlflow_is_an_adapter_that_names_its_base_without_pickle_or_other_path",
    "tests/e2e/test_pipeline.py::test_predictor_answers_with_the_registered_version",
    "tests/e2e/test_pipeline.py::test_run_shows_data_forecast_progress_loss_rouge_and_links",
    "tests/e2e/test_bad_input.py::test_full_disk_says_so_and_what_was_finished_is_kept",
    "tests/e2e/test_form.py::test_the_other_form_groups_orders_and_describes_every_parameter",
    "tests/e2e/test_doors.py::test_a_program_without_the_secret_gets_nothing",
    "tests/invariants/test_resume.py::test_a_kill_changes_nothing[lora-ddp-train.after_backward-5-1]",
    "tests/invariants/test_trajectory.py::test_every_cut_gives_the_recorded_trajectory[one rank-lora]",
    "tests/invariants/test_trajectory.py::test_every_cut_gives_the_recorded_trajectory[two ranks, ddp-full]",
    "tests/deployments/prefect_setup/test_postgres.py::test_postgres_takes_the_deployments_and_schedules_their_runs",
    "tests/tasks/data/test_streams.py::test_an_object_that_changes_while_it_is_read_is_read_once_more",
)
"""A training through the real stack (with S3) and what it leaves, a full disk, a form in Chromium, the doors, a killed
rank that goes on, two cuts of the recorded trajectory, Postgres, S3."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, before tests are chosen by their marks."""
    for item in items:
        if item.nodeid.startswith(SMOKE):
            item.add_marker(pytest.mark.smoke)
