"""Plots: what the artists hold is what the record says."""

import warnings

import numpy as np
import pytest
from matplotlib import colormaps, pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cljax.report import figures, frame, palette, plots, sections
from cljax.report.series import known_mean_and_interval, learning_curve
from cljax.report.sweep import stability_plasticity
from tests.records import FIRST, SECOND, make_attention, make_run, make_usage

T1 = 12.706204736432095
"""Student's t at 0.975 with one degree of freedom: two values x, y have the half-width T1 |x - y| / 2."""
FINETUNE, TFM = make_run("finetune", FIRST), make_run("tfm", SECOND)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def overlaps(ax):
    """Pairs of written texts (ticks, numbers, legend, title, names) that cover one another."""
    canvas, found = FigureCanvasAgg(ax.figure), []
    canvas.draw()
    renderer = canvas.get_renderer()
    parts = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.title, ax._left_title, ax.xaxis.label]
    parts += [ax.yaxis.label, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
    low, high = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    for part in parts:
        x, y = part.get_position()
        tick = part in ax.get_xticklabels() or part in ax.get_yticklabels()
        across = part in ax.get_xticklabels()
        outside = tick and not (low[0] <= x <= low[1] if across else high[0] <= y <= high[1])
        if part.get_text() and part.get_visible() and not outside:
            found.append((part.get_text(), part.get_window_extent(renderer)))
    return [
        (one, other)
        for place, (one, box) in enumerate(found)
        for other, second in found[place + 1 :]
        if box.x0 < second.x1 - 1 and second.x0 < box.x1 - 1 and box.y0 < second.y1 - 1 and second.y0 < box.y1 - 1
    ]


def test_accuracy_matrix_shows_the_mean_over_seeds():
    ax = plots.accuracy_matrix(FINETUNE)
    np.testing.assert_allclose(ax.images[0].get_array(), [[85.0, 15.0], [55.0, 75.0]])
    assert ax.images[0].get_clim() == (0, 100)
    assert texts(ax) == ["85.0", "15.0", "55.0", "75.0"]
    assert [text.get_position() for text in ax.texts] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert ax.get_title("left") == "finetune: accuracy on each task (%)"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("on task", "after task")
    stairs = ax.lines[0].get_xydata()
    np.testing.assert_array_equal(stairs, [[0.5, 0.5], [1.5, 1.5], [2.5, 2.5]])
    assert ax.lines[0].get_drawstyle() == "steps-post"  # right first, then down: above the line is what is to come


def test_matrix_of_what_is_unknown_and_of_the_other_reading():
    run = make_run("joint", [[[0.9, None], [None, 0.7]]], "class", task_il_accuracy=[[[1.0, 0.5], [0.25, 0.75]]])
    assert texts(plots.accuracy_matrix(run)) == ["90.0", "-", "-", "70.0"]
    ax = plots.accuracy_matrix(run, task_il_accuracy=True)
    assert texts(ax) == ["100.0", "50.0", "25.0", "75.0"]
    assert "task-IL" in ax.get_title("left")


def test_matrix_of_many_tasks_writes_whole_numbers_and_then_none():
    accuracy = np.linspace(0, 1, 400).reshape(1, 20, 20)
    ax = plots.accuracy_matrix(make_run("lwf", accuracy.tolist()))
    assert texts(ax)[:3] == ["0", "0", "1"]
    assert all(text.get_fontsize() >= frame.SMALLEST_TEXT for text in ax.texts)
    ax = plots.accuracy_matrix(make_run("lwf", np.zeros([1, 100, 100]).tolist()))
    assert texts(ax) == []


def test_task_accuracy_begins_at_the_first_visit():
    ax = plots.task_accuracy(FINETUNE)
    lines = {line.get_label(): line.get_xydata() for line in ax.lines if line.get_label().startswith("task")}
    np.testing.assert_allclose(lines["task 1"], [[1, 85], [2, 55]])
    np.testing.assert_allclose(lines["task 2"], [[2, 75]])
    band = ax.collections[0].get_paths()[0].vertices
    # Task 1 after task 1: 0.9 and 0.8, so 85 ± T1 5; after task 2: 0.5 and 0.6.
    np.testing.assert_allclose(band[:, 1].min(), 0)  # not 55 - T1 5
    np.testing.assert_allclose(band[:, 1].max(), 100)  # not 85 + T1 5
    low, high = ax.get_ylim()
    assert 0 > low > -10
    assert 100 < high < 110


def test_of_many_tasks_ten_are_coloured():
    accuracy = np.random.default_rng(0).random((2, 30, 30))
    ax = plots.task_accuracy(make_run("lwf", accuracy.tolist()))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 10
    assert (labels[0], labels[-1]) == ("task 1", "task 30")
    assert ax.get_legend().get_title().get_text() == "10 of 30 tasks"
    assert sum(line.get_color() == frame.GRID for line in ax.lines) == 20


def test_revisits_show_every_visit():
    rounds = [[[0.9, 0.1], [0.5, 0.7], [0.8, 0.6]]]
    schedule = {"task": [0, 1, 0], "epochs": [1] * 3, "evaluate": [True] * 3}
    run = make_run("finetune", [[[0.9, 0.1], [0.8, 0.6]]], rounds={"accuracy": rounds}, schedule=schedule)
    ax = plots.task_accuracy(run)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 90], [2, 50], [3, 80]])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[2, 70], [3, 60]])
    assert ax.get_xlabel() == "after visit"


def test_comparison_has_means_intervals_and_seeds():
    ax = plots.comparison([FINETUNE, TFM])
    seeds = [line for line in ax.lines if line.get_marker() == "."]
    np.testing.assert_allclose([line.get_xdata() for line in seeds], [[60, 70], [77, 81]], rtol=1e-6)
    bars = [container for container in ax.containers if container.has_xerr]
    np.testing.assert_allclose([bar.lines[0].get_xydata()[0] for bar in bars], [[65, 0], [79, 1]], rtol=1e-6)
    ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in bars]
    np.testing.assert_allclose(ends, [[65 - T1 * 5, 100], [79 - T1 * 2, 100]], rtol=1e-5)
    assert texts(ax) == ["65 ±64", "79 ±25"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["finetune", "tfm"]
    assert ax.get_xlabel() == "average accuracy (%)"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top


def test_one_seed_has_no_interval():
    run = make_run("finetune", FIRST[:1])
    ax = plots.comparison([run])
    assert not ax.containers[0].has_xerr
    assert texts(ax) == ["60.0"]
    ax = plots.accuracy_against_forgetting([run])
    assert (ax.containers[0].has_xerr, ax.containers[0].has_yerr) == (False, False)
    assert len(plots.task_accuracy(run).collections) == 0


def test_accuracy_against_forgetting():
    ax = plots.accuracy_against_forgetting([FINETUNE, TFM])
    points = [container.lines[0].get_xydata()[0] for container in ax.containers]
    np.testing.assert_allclose(points, [[30, 65], [0, 79]], rtol=1e-6, atol=1e-6)
    across, up = (bars.get_segments()[0] for bars in ax.containers[0].lines[2])
    np.testing.assert_allclose(across[:, 0], [30 - T1 * 10, 100], rtol=1e-5)
    np.testing.assert_allclose(up[:, 1], [65 - T1 * 5, 100], rtol=1e-5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["finetune", "tfm"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("forgetting (%)", "average accuracy (%)")


def test_seen_accuracy_ends_at_the_average_accuracy():
    ax = plots.seen_accuracy([FINETUNE, TFM])
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], [[85, 65], [85, 79]])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]  # 85 ± T1 5, 65 ± T1 5, within 100
    np.testing.assert_allclose([band.min(), band.max()], [65 - T1 * 5, 100])
    many = plots.seen_accuracy([FINETUNE] * (plots.CROWD + 1))
    assert len(many.collections) == 0


def test_one_method_that_diverges_does_not_flatten_the_others():
    away = make_run("lwf", FIRST)
    away["epochs"] = {**away["epochs"], "loss": [[[[1e9, 1e12]]] * 2] * 2}
    low, high = plots.learning_curves([FINETUNE, TFM, away], of="loss").get_ylim()
    assert (low, high) == pytest.approx((0.9 / 1.5, 1.5 * 30 * 2.0))  # the others' losses are 0.9 to 2


def test_the_words_call_a_mean_that_is_not_the_line_s_by_its_name():
    """Class-incremental, of tasks with 1 and 9 classes: (100 + 45) / 2, where the line is at 100 and 25."""
    accuracy = [[[1.0, 0.0], [0.0, 0.5]]]
    facts = [{"classes": [[0], list(range(1, 10))]}]
    run = make_run("lwf", accuracy, "class", facts=facts)
    words = next(one.words for one in figures.draw(sections.Section("", [run], [])) if one.name == "seen_accuracy")
    assert words.endswith("a line a method: average incremental accuracy lwf 72.5.")


def test_many_methods_have_a_plot_each():
    runs = [{**make_run(f"m{number}", FIRST), "place": number} for number in range(plots.CROWD + 3)]
    drawn = {drawing.name: drawing.figure for drawing in figures.draw(sections.Section("title", runs, []))}
    panels = [ax for ax in drawn["learning_curves"].axes if ax.axison]
    assert [ax.get_title("left") for ax in panels] == [run["method"] for run in runs]
    assert [ax.lines[-1].get_color() for ax in panels] == [palette.style(place).color for place in range(len(runs))]
    np.testing.assert_allclose(panels[0].lines[-1].get_xydata(), [[0.5, 75], [1, 35], [1.5, 75], [2, 35]])
    assert len({palette.style(place) for place in range(26)}) == len({light for light, _ in palette.METHODS}) == 26


def test_learning_curves_of_validation_then_of_curves_then_of_loss():
    ax = plots.learning_curves([FINETUNE, TFM])
    # Two epochs a task at 0.8 and 0.4, the other seed 0.1 lower.
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.5, 75], [1, 35], [1.5, 75], [2, 35]])
    assert ax.get_title("left") == "Validation accuracy on the task being learned"
    points = {"curve_epochs": [[0, 0, 2], [1, 0, 2]], "curves": [[[0.9, 0.1], [0.5, 0.7]], [[0.8, 0.2], [0.6, 0.8]]]}
    ax = plots.learning_curves([{**FINETUNE, **points}])
    # On the tasks so far: task 1 alone, then the mean of both.
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 85], [2, 65]])
    assert ax.get_title("left") == "Test accuracy on the tasks so far"
    assert plots.learning_curves([{**FINETUNE, **points}, TFM]).get_title("left").startswith("Validation")
    nothing = {**FINETUNE["epochs"], "validation_accuracy": [[[[None, None]]] * 2] * 2}
    ax = plots.learning_curves([{**FINETUNE, "epochs": nothing}, TFM])
    assert ax.get_ylabel() == "loss (nats)"
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.lines[0].get_ydata()[0], np.sqrt(2.0 * 1.9))
    with pytest.raises(ValueError, match=r"No run has 'curves'. Curves are recorded with --curves-every"):
        plots.learning_curves([FINETUNE], of="curves")


def test_a_curve_of_phases_and_of_seeds_that_stop_early():
    loss = [[[[2.0, None], [1.0, 0.5]]], [[[3.0, None], [2.0, None]]]]
    run = make_run("lwf", [[[1.0]], [[1.0]]], epochs={"loss": loss})
    places, values = learning_curve(run, "loss")
    np.testing.assert_allclose(places, [1 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(values, [[2.0, 1.0, 0.5], [3.0, 2.0, np.nan]])
    mean, half = known_mean_and_interval(values)
    np.testing.assert_allclose(mean, [2.5, 1.5, 0.5])
    np.testing.assert_allclose(half, [T1 / 2, T1 / 2, np.nan])


def test_feature_usage_stacks_to_100_percent():
    run = make_run("tfm", SECOND, feature_usage=make_usage())
    ax = plots.feature_usage(run, "dense_0")
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    expected = {"reused": [0, 30], "older, not reused": [0, 10], "new": [40, 30], "free": [60, 30]}
    assert list(heights) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(heights[name], value, atol=1e-9)
    np.testing.assert_allclose([bar.get_y() for bar in ax.containers[3]], [40, 70])
    with pytest.raises(ValueError, match=r"no feature usage of the layer 'conv'. It has: dense_0."):
        plots.feature_usage(run, "conv")


def test_attention_is_drawn_on_the_images():
    run = make_run("lwm", SECOND, attention=make_attention())
    ax = plots.attention(run)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["image", "1", "2"]
    picture = np.asarray(ax.images[0].get_array())
    assert picture.shape == (2 * 64 + 4, 3 * 64 + 8, 4)
    tiles = np.stack([[picture[y : y + 64, x : x + 64] for x in (0, 68, 136)] for y in (0, 68)])
    assert (picture[..., 3] == 0).sum() == picture[..., 3].size - 6 * 64 * 64
    red = 0.3 * 0.2 + 0.7 * np.array(colormaps["turbo"](1.0)[:3])
    for row, column, place, color in (
        (0, 1, 0, red),
        (0, 1, -1, 0.2),  # 51 of 255
        (0, 2, 0, 0.2),
        (0, 2, -1, red),
        (1, 1, slice(None), red),
        (1, 2, slice(None), 0.2),
        (slice(None), 0, slice(None), 0.2),
    ):
        tile = tiles[row, column][..., place, place, :3]
        np.testing.assert_allclose(tile, np.broadcast_to(color, tile.shape), atol=1e-6)
    with pytest.raises(ValueError, match="The run of lwf has no attention: give settings attention_images"):
        plots.attention(make_run("lwf", FIRST))


def test_a_method_looks_the_same_in_every_plot():
    runs = [{**make_run(f"method {number}", FIRST), "place": number} for number in range(12)]
    looks = [palette.style(number) for number in range(12)]
    assert len(set(looks)) == 12
    assert len({look.marker for look in looks}) == 12
    for axes in (plots.accuracy_against_forgetting(runs[3:5]), plots.comparison(runs[3:5])):
        found = [container.lines[0] for container in axes.containers]
        assert [(line.get_color(), line.get_marker()) for line in found] == [look[:2] for look in looks[3:5]]
    lines = plots.learning_curves(runs[3:5], of="loss").lines[:2]
    assert [(line.get_color(), line.get_marker()) for line in lines] == [look[:2] for look in looks[3:5]]


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_on_light_and_on_dark_paper():
    for light, dark in (*palette.METHODS, *palette.TASKS):
        assert contrast(light, "#ffffff") >= 3.0, light
        assert contrast(dark, "#14181c") >= 4.5, dark
    assert contrast(palette.INK[0], "#ffffff") > 7
    assert len(palette.dark_twins()) == len(palette.METHODS) + len(palette.TASKS) + len(palette.CAPACITY) + 2


@pytest.mark.parametrize(("methods", "tasks"), [(1, 2), (12, 15), (2, 100)])
def test_no_text_covers_another(methods, tasks):
    random = np.random.default_rng(0)
    names = [f"{'tensor_factorization' if number % 2 else 'lwf'}_{number}" for number in range(methods)]
    runs = [make_run(name, random.random((2, tasks, tasks)).tolist()) for name in names]
    drawn = [plots.accuracy_matrix(runs[0]), plots.task_accuracy(runs[0]), plots.comparison(runs)]
    drawn += [plots.accuracy_against_forgetting(runs), plots.learning_curves(runs)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [overlaps(ax) for ax in drawn] == [[]] * len(drawn)


def test_plots_draw_where_they_are_told_and_leave_pyplot_alone():
    ax = Figure().subplots()
    assert plots.comparison([FINETUNE], ax) is ax
    plots.task_accuracy(FINETUNE)
    assert pyplot.get_fignums() == []


HARD = ["$\\alpha^", "cats$^$ $x_", "_hidden", "a\x1b[31m\nb\x00", "\ud800\u732b", "%d {} \\", "x" * 5000]


def test_names_are_no_mathematics_and_always_in_the_legend():
    """Also names that the font cannot draw, and those with a `_`, which Matplotlib leaves out."""
    runs = [make_run(name, FIRST, label=name, data=HARD[1]) for name in HARD]
    swept = [{**run, "sweep": {"curve": run["label"], "parameter": None, "value": None}} for run in runs]
    drawn = [plots.accuracy_against_forgetting(runs), plots.learning_curves(runs), stability_plasticity(swept)]
    expected = ["$\\alpha^", "cats$^$ $x_", " _hidden", "a\\x1b[31m\\nb\\x00", "\\ud800\\u732b", "%d {} \\"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ax in drawn:
            entries = ax.get_legend().get_texts()
            assert [text.get_text() for text in entries][:-1] == expected
            assert entries[-1].get_text().endswith("...")
            assert not any(text.get_parse_math() for text in (*entries, ax._left_title))
        FigureCanvasAgg(drawn[2].figure).draw()
        ax = plots.comparison(runs)
        FigureCanvasAgg(ax.figure).draw()
        assert [label.get_text() for label in ax.get_yticklabels()][:-1] == expected
        assert not any(label.get_parse_math() for label in ax.get_yticklabels())
    assert not plots.accuracy_matrix(runs[0])._left_title.get_parse_math()
    assert drawn[2].get_title("left") == "Stability against plasticity: cats$^$ $x_, 2 tasks, task-\nincremental"


def test_a_figure_of_many_methods_is_no_taller_than_matplotlib_takes():
    assert plots.comparison([make_run("lwf", FIRST[:1])] * 170).figure.get_size_inches()[1] == 60


def test_a_legend_of_long_names_leaves_the_plot_its_height():
    names = [f"duplicate_and_finetune (digits-task-20260101-{number:06d})" for number in range(20)]
    many = [make_run("duplicate_and_finetune", FIRST, label=name) for name in names]
    for plot in (plots.seen_accuracy, plots.accuracy_against_forgetting):
        ax = plot(many)
        ax.figure.draw_without_rendering()
        assert ax.get_position().height > 0.7


def test_confusion_matrix_leaves_out_what_no_task_has_and_divides_tasks():
    counts = np.zeros((4, 4), int)
    counts[0, 0], counts[0, 2], counts[2, 2], counts[3, 0] = 3, 1, 2, 5
    ax = plots.confusion_matrix(counts, [[True, False], [True, True]], title="lwf")
    shown = np.asarray(ax.images[0].get_array(), float)
    np.testing.assert_allclose(shown, [[75, 25, 0], [0, 100, 0], [100, 0, 0]])
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 1.5], [1, 1.5]], [[1.5, 0], [1.5, 1]]]
    assert ax.get_title("left").startswith("lwf: classes in the order of the tasks")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
