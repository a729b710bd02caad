"""Component `deploy_policy`: the promoted policy as a self-contained folder that can be served."""

from kfp.dsl import Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def deploy_policy(
    policy: Input[Model],
    summary: Input[Metrics],
    served: Output[Model],
    policy_objective: str = "ppo",
    model_display_name: str = "",
    deploy_dir: str = "",
) -> str:
    """Copies the policy with a model card, loads it and lets it answer one smoke request.

    Args:
        policy: folder from `policy_train`, promoted by `gate`.
        summary: the report's summary, copied beside the model.
        served: the model folder.
        policy_objective: what the policy was trained by.
        model_display_name: name in the model card; empty = model and date.
        deploy_dir: local folder to copy the model to as well; empty = the artifact alone.

    Returns:
        The folder that is ready to be served.
    """
    from pipestill.serving.package import package_student

    location, metadata = package_student(
        [policy.path],
        summary.path,
        served.path,
        objective=policy_objective,
        display_name=model_display_name,
        deploy_dir=deploy_dir,
    )
    served.metadata.update(metadata)
    return location
