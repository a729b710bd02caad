"""Component `deploy_tuned`: the tuned model as a self-contained folder that can be served."""

from kfp.dsl import Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def deploy_tuned(
    model: Input[Model],
    summary: Input[Metrics],
    served: Output[Model],
    model_display_name: str = "",
    deploy_dir: str = "",
) -> str:
    """Copies the model with a model card, loads it and lets it answer one smoke request.

    Args:
        model: folder from `supervised_tune`.
        summary: the report's summary, copied beside the model.
        served: the model folder.
        model_display_name: name in the model card; empty = model and date.
        deploy_dir: local folder to copy the model to as well; empty = the artifact alone.

    Returns:
        The folder that is ready to be served.
    """
    from pipestill.serving.package import package_student
    from pipestill.training.supervised import OBJECTIVE

    location, metadata = package_student(
        [model.path],
        summary.path,
        served.path,
        objective=OBJECTIVE,
        display_name=model_display_name,
        deploy_dir=deploy_dir,
    )
    served.metadata.update(metadata)
    return location
