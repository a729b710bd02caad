"""Component `deploy`: the chosen student as a self-contained folder for `pipestill serve`."""

from kfp.dsl import Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def deploy(
    students: Input[list[Model]],
    summary: Input[Metrics],
    served: Output[Model],
    objective: str = "dss",
    model_display_name: str = "",
    deploy_dir: str = "",
) -> str:
    """Picks the objective's seed with the best validation score and makes it servable.

    The held-out rows choose nothing here, so the reported accuracy stays honest. The folder is
    loaded and answers one smoke request before it counts as deployed.

    Args:
        students: folders from `student_train`.
        summary: the report's summary, copied beside the model.
        served: the model folder.
        objective: whose student to serve.
        model_display_name: name in the model card; empty = student and date.
        deploy_dir: local folder to copy the model to as well; empty = the artifact alone.

    Returns:
        The folder that is ready to be served.
    """
    from pipestill.serving.package import package_student

    location, metadata = package_student(
        [student.path for student in students],
        summary.path,
        served.path,
        objective=objective,
        display_name=model_display_name,
        deploy_dir=deploy_dir,
    )
    served.metadata.update(metadata)
    return location
