import saccade_client


def test_all_is_sorted_and_is_what_can_be_imported():
    modules = {
        name
        for name, value in vars(saccade_client).items()
        if getattr(value, "__name__", "") == f"saccade_client.{name}"
    }
    public = {name for name in vars(saccade_client) if not name.startswith("_")} - modules
    assert saccade_client.__all__ == sorted(public)
