import pytest

from solver.errors import InputError
from solver.settings import VARIABLES, Settings, default_workers, read_settings


def test_without_anything_the_defaults_hold():
    assert read_settings({}, {}) == Settings(workers=default_workers())
    assert 1 <= default_workers() <= 4


def test_variables_win_over_defaults_and_flags_over_variables():
    environ = {"FLEETOPT_PORT": "9000", "FLEETOPT_BACKEND": "ortools", "FLEETOPT_TIME_LIMIT": "7.5"}
    settings = read_settings(environ, {"backend": "pyomo", "port": None})
    assert (settings.port, settings.backend, settings.time_limit_s) == (9000, "pyomo", 7.5)


def test_every_setting_has_a_variable():
    values = {
        "FLEETOPT_BACKEND": "greedy",
        "FLEETOPT_HOST": "0.0.0.0",
        "FLEETOPT_PORT": "1",
        "FLEETOPT_WORKERS": "3",
        "FLEETOPT_TIME_LIMIT": "4",
        "FLEETOPT_MAX_TIME_LIMIT": "5",
        "FLEETOPT_GRACE": "6",
        "FLEETOPT_MAX_BODY_MIB": "7",
        "FLEETOPT_MAX_WAITING": "8",
        "FLEETOPT_STOP": "9",
        "FLEETOPT_LOG_LEVEL": "debug",
    }
    assert set(values) == set(VARIABLES.values())
    assert read_settings(values, {}) == Settings("greedy", "0.0.0.0", 1, 3, 4.0, 5.0, 6.0, 7.0, 8, 9, "debug")


def test_an_empty_variable_counts_as_absent():
    assert read_settings({"FLEETOPT_PORT": " "}, {}).port == Settings.port


def test_the_port_that_kubernetes_sets_for_a_service_of_our_name_is_not_ours():
    assert read_settings({"FLEETOPT_PORT": "tcp://10.0.0.1:8080"}, {}).port == Settings.port


def test_every_wrong_variable_is_named():
    with pytest.raises(InputError) as caught:
        read_settings({"FLEETOPT_WORKERS": "two", "FLEETOPT_GRACE": "long"}, {})
    assert [problem.path for problem in caught.value.problems] == ["FLEETOPT_WORKERS", "FLEETOPT_GRACE"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLEETOPT_PORT", "70000"),
        ("FLEETOPT_WORKERS", "0"),
        ("FLEETOPT_TIME_LIMIT", "0"),
        ("FLEETOPT_TIME_LIMIT", "nan"),
        ("FLEETOPT_MAX_TIME_LIMIT", "10"),  # below the default limit of 30 s
        ("FLEETOPT_MAX_TIME_LIMIT", "inf"),
        ("FLEETOPT_GRACE", "-1"),
        ("FLEETOPT_MAX_BODY_MIB", "0"),
        ("FLEETOPT_MAX_WAITING", "-1"),
        ("FLEETOPT_STOP", "-1"),
        ("FLEETOPT_LOG_LEVEL", "loud"),
    ],
)
def test_a_value_out_of_range_is_refused(variable: str, value: str):
    with pytest.raises(InputError) as caught:
        read_settings({variable: value}, {})
    assert caught.value.problems[0].path == variable
