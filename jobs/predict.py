"""Classify pictures with a run's model: the five best classes of each, with their probabilities.

    python jobs/predict.py photo.jpg other.png --run RUN
    python jobs/predict.py val/n01440764/*.JPEG --run RUN --figure OUT.png

Any picture file that the offline stage reads is accepted, in any format and size. It is converted to the form in which
the run's dataset stores its pictures, then cropped and normalised as in evaluation. Only the run folder is needed. If a
file's folder has the wnid or name of a class, that class is taken as the true one and marked. Files that are not
pictures are named at the end, and the exit status is then 1.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("predict")

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_options import Crops
from model.foreign import announce_file
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.json_answer import JsonTarget, completed, json_answer

if TYPE_CHECKING:
    from cluster.worker.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/predict.py`."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Picture files."""
    run: Path | None = None
    """Run folder. Default: that of the embedded default."""
    crops: Crops = "centre"
    """Part of a picture that the model sees: the centre crop, or ten crops whose probabilities are averaged."""
    figure: Path | None = None
    """PNG to draw: each picture beside its classes. With more than 30 pictures, further pages are OUT-2.png, ..."""
    json: JsonTarget = None
    """File to write the predictions to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    # Imported here: the command's help needs neither torch nor DALI, which take seconds to load.
    from cluster.worker.prediction import predict
    from cluster.worker.trained_model import default_device
    from jobs.prediction_figure import draw_pages
    from pipeline.pictures.figures import check_figure_path, write_figure

    if not arguments.images:
        raise InputError("no picture is named: jobs/predict.py IMAGE... --run RUN")
    if arguments.figure is not None:
        check_figure_path(arguments.figure, "--figure")
    run = RunFolder.open((arguments.run or embedded.run_folder()).absolute())
    announce_file(run.config.model.name)
    refused: dict[Path, str] = {}
    with json_answer(arguments.json, run.path) as answer:
        predictions = list(predict(arguments.images, run, arguments.crops, default_device(), refused))
        if not predictions:
            raise InputError("\n".join(refused.values()))
        for prediction in predictions:
            sys.stdout.write("\n".join(_lines(prediction, run)) + "\n")
        answer(_document(predictions, refused, run, arguments.crops))
        if arguments.figure is not None:
            for number, page in enumerate(draw_pages(predictions, run.class_names), start=1):
                name = f"{arguments.figure.stem}-{number}"
                path = arguments.figure if number == 1 else arguments.figure.with_stem(name)
                write_figure(page, path)
                sys.stdout.write(f"figure: {path}\n")
        sys.stdout.flush()
    sys.stderr.writelines(f"error: {line}\n" for line in refused.values())
    return 1 if refused else 0


def _lines(prediction: "Prediction", run: RunFolder) -> Iterator[str]:
    yield str(prediction.path)
    for index, probability in zip(prediction.class_indices, prediction.probabilities, strict=True):
        mark = "  <- its folder" if index == prediction.true_class_index else ""
        yield f"  {probability:6.1%}  {run.wnids[index]}  {run.class_names[index]}{mark}"


def _document(
    predictions: Sequence["Prediction"], refused: Mapping[Path, str], run: RunFolder, crops: Crops
) -> dict[str, Any]:
    def class_document(index: int) -> dict[str, Any]:
        return {"class_index": index, "wnid": run.wnids[index], "name": run.class_names[index]}

    return {
        "run": str(run.path),
        "crops": crops,
        "predictions": [
            {
                "path": str(p.path),
                "true_class": None if p.true_class_index is None else class_document(p.true_class_index),
                "classes": [
                    class_document(index) | {"probability": probability}
                    for index, probability in zip(p.class_indices, p.probabilities, strict=True)
                ],
            }
            for p in predictions
        ],
        "refused": {str(path): why for path, why in refused.items()},
    }


if __name__ == "__main__":
    run_command(main)
