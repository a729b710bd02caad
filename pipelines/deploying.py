"""The last step of pipelines that train several students: one of them is made servable."""

from typing import Any

from kfp import dsl
from kfp.dsl import Input, Metrics, Model

from pipestill.components.deploy import deploy
from pipestill.pipelines.placement import Placement


def deploy_student(place: Placement) -> Any:
    """A pipeline of its own, because KFP cannot compile a Collected inside an If."""

    @dsl.pipeline(name="deploy-student")
    def deploy_student(
        students: Input[list[Model]],
        summary: Input[Metrics],
        deploy_model: bool,
        objective: str,
        model_display_name: str,
        deploy_dir: str,
    ):
        with dsl.If(deploy_model == True):  # noqa: E712 (KFP builds a condition from it)
            served = deploy(
                students=students,
                summary=summary,
                objective=objective,
                model_display_name=model_display_name,
                deploy_dir=deploy_dir,
            )
            place.settle(served, "Deploy")

    return deploy_student
