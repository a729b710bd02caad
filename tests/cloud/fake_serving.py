"""The fake's models (versions and aliases), endpoints (traffic, predictions) and batch jobs."""

from collections.abc import Callable
from typing import Any

from google.cloud.aiplatform_v1 import types


def echo(deployed: types.DeployedModel, instances: list[Any]) -> list[Any]:
    """The default predictions: each instance with the model that answers."""
    return [{"model": f"{deployed.model}@{deployed.model_version_id}"} for _ in instances]


class Serving:
    """State: `models` is name → versions in order; `endpoints` by name; `predictor` answers."""

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, list[types.Model]] = {}
        self.endpoints: dict[str, types.Endpoint] = {}
        self.batches: dict[str, types.BatchPredictionJob] = {}
        self.looks: dict[str, int] = {}
        self.batch_looks = 1
        self.predictor: Callable[[types.DeployedModel, list[Any]], list[Any]] = echo
        self.deploy_errors: list[tuple[int, str]] = []  # of the next deployments: rpc code, text
        self.batch_run: Callable[[types.BatchPredictionJob], str] = lambda job: ""  # output folder
        self.watch: Callable[[str], None] = lambda rpc: None  # called after each change

    # models

    def upload_model(self, request: Any) -> Any:
        from tests.cloud.fake_vertex import Refusal

        model = request.model
        if not model.display_name or not model.container_spec.image_uri:
            raise Refusal(400, "display_name and container_spec.image_uri are required")
        name = request.parent_model.partition("@")[0]
        if name and name not in self.models:
            raise Refusal(404, f"Model {name} not found")
        name = name or f"{request.parent}/models/{request.model_id or len(self.models) + 1}"
        versions = self.models.setdefault(name, [])
        model.name, model.version_id = name, str(len(versions) + 1)
        model.create_time = model.version_create_time = self._now()  # type: ignore[attr-defined]
        # Without this the client drops the machine type on deploy.
        dedicated = types.Model.DeploymentResourcesType.DEDICATED_RESOURCES
        model.supported_deployment_resources_types = [dedicated]
        own = ["default"] if not versions else []
        aliases = list(dict.fromkeys([*model.version_aliases, *own]))
        model.version_aliases = []
        versions.append(model)
        self._move_aliases(name, model, aliases)
        response = types.UploadModelResponse(model=name, model_version_id=model.version_id)
        return self.done(request.parent, response)  # type: ignore[attr-defined]

    def get_model(self, request: Any) -> types.Model:
        return self._version(request.name)

    def list_models(self, request: Any) -> types.ListModelsResponse:
        newest = [versions[-1] for versions in self.models.values() if versions]
        wanted = _quoted(request.filter, "display_name")
        return types.ListModelsResponse(
            models=[model for model in newest if not wanted or model.display_name == wanted]
        )

    def list_model_versions(self, request: Any) -> types.ListModelVersionsResponse:
        self._version(request.name)
        return types.ListModelVersionsResponse(models=self.models[request.name.partition("@")[0]])

    def merge_version_aliases(self, request: Any) -> types.Model:
        model = self._version(request.name)
        added = [alias for alias in request.version_aliases if not alias.startswith("-")]
        removed = {alias[1:] for alias in request.version_aliases if alias.startswith("-")}
        model.version_aliases = [a for a in model.version_aliases if a not in removed]
        self._move_aliases(model.name, model, added)
        self.watch("merge_version_aliases")
        return model

    def update_model(self, request: Any) -> types.Model:
        stored = self._version(request.model.name)
        for path in request.update_mask.paths:
            setattr(stored, path, getattr(request.model, path))
        return stored

    def delete_model_version(self, request: Any) -> Any:
        model = self._version(request.name)
        self.models[model.name].remove(model)
        return self.done(_parent(request.name), None)  # type: ignore[attr-defined]

    def delete_model(self, request: Any) -> Any:
        self._version(request.name)
        del self.models[request.name.partition("@")[0]]
        return self.done(_parent(request.name), None)  # type: ignore[attr-defined]

    def _version(self, reference: str) -> types.Model:
        from tests.cloud.fake_vertex import Refusal

        name, _, version = reference.partition("@")
        wanted = version or "default"
        for model in self.models.get(name, []):
            if model.version_id == wanted or wanted in model.version_aliases:
                return model
        raise Refusal(404, f"Model {reference} not found")

    def _move_aliases(self, name: str, model: types.Model, aliases: list[str]) -> None:
        for other in self.models[name]:
            other.version_aliases = [a for a in other.version_aliases if a not in aliases]
        model.version_aliases = [*model.version_aliases, *aliases]

    # endpoints

    def create_endpoint(self, request: Any) -> Any:
        endpoint = request.endpoint
        number = request.endpoint_id or str(len(self.endpoints) + 1)
        endpoint.name = f"{request.parent}/endpoints/{number}"
        endpoint.create_time = self._now()  # type: ignore[attr-defined]
        if endpoint.dedicated_endpoint_enabled:
            endpoint.dedicated_endpoint_dns = f"{number}.prediction.vertexai.goog"
        self.endpoints[endpoint.name] = endpoint
        return self.done(request.parent, endpoint)  # type: ignore[attr-defined]

    def get_endpoint(self, request: Any) -> types.Endpoint:
        return self._endpoint(request.name)

    def list_endpoints(self, request: Any) -> types.ListEndpointsResponse:
        wanted = _quoted(request.filter, "display_name")
        found = [e for e in self.endpoints.values() if not wanted or e.display_name == wanted]
        return types.ListEndpointsResponse(endpoints=found)

    def update_endpoint(self, request: Any) -> types.Endpoint:
        stored = self._endpoint(request.endpoint.name)
        for path in request.update_mask.paths:
            if path == "traffic_split":
                self._set_traffic(stored, dict(request.endpoint.traffic_split))
            else:
                setattr(stored, path, getattr(request.endpoint, path))
        self.watch("update_endpoint")
        return stored

    def delete_endpoint(self, request: Any) -> Any:
        from tests.cloud.fake_vertex import Refusal

        if self._endpoint(request.name).deployed_models:
            raise Refusal(400, "The endpoint still has deployed models.")
        del self.endpoints[request.name]
        return self.done(_parent(request.name), None)  # type: ignore[attr-defined]

    def deploy_model(self, request: Any) -> Any:
        from tests.cloud.fake_vertex import Refusal

        endpoint = self._endpoint(request.endpoint)
        deployed = request.deployed_model
        if not deployed.dedicated_resources.machine_spec.machine_type:
            raise Refusal(400, "dedicated_resources.machine_spec.machine_type is required")
        model = self._version(deployed.model)
        if self.deploy_errors:
            code, text = self.deploy_errors.pop(0)
            name = f"{_parent(endpoint.name)}/operations/{len(self.operations) + 1}"  # type: ignore[attr-defined]
            failed = {"name": name, "done": True, "error": {"code": code, "message": text}}
            self.operations[name] = failed  # type: ignore[attr-defined]
            return failed
        deployed.model, deployed.model_version_id = model.name, model.version_id
        used = {item.id for item in endpoint.deployed_models}
        numbers = (str(n) for n in range(1, 10_000))
        deployed.id = deployed.id or next(number for number in numbers if number not in used)
        endpoint.deployed_models = [*endpoint.deployed_models, deployed]
        split = {deployed.id if k == "0" else k: v for k, v in request.traffic_split.items()}
        if split:
            self._set_traffic(endpoint, split)
        self.watch("deploy_model")
        response = types.DeployModelResponse(deployed_model=deployed)
        return self.done(_parent(endpoint.name), response)  # type: ignore[attr-defined]

    def undeploy_model(self, request: Any) -> Any:
        from tests.cloud.fake_vertex import Refusal

        endpoint = self._endpoint(request.endpoint)
        ids = [item.id for item in endpoint.deployed_models]
        if request.deployed_model_id not in ids:
            raise Refusal(404, f"deployed model {request.deployed_model_id} not found")
        kept = [m for m in endpoint.deployed_models if m.id != request.deployed_model_id]
        split = dict(request.traffic_split) or dict(endpoint.traffic_split)
        if kept and split.get(request.deployed_model_id, 0) and not request.traffic_split:
            raise Refusal(400, "the deployed model still has traffic")
        split.pop(request.deployed_model_id, None)
        endpoint.deployed_models = kept
        self._set_traffic(endpoint, split if kept else {})
        self.watch("undeploy_model")
        response = types.UndeployModelResponse()
        return self.done(_parent(endpoint.name), response)  # type: ignore[attr-defined]

    def predict(self, request: Any) -> dict[str, Any]:
        from google.protobuf import json_format

        from tests.cloud.fake_vertex import Refusal

        endpoint = self._endpoint(request.endpoint)
        split = {key: share for key, share in endpoint.traffic_split.items() if share}
        if not split:
            raise Refusal(400, "no deployed model has traffic on this endpoint")
        chosen = max(split, key=lambda key: split[key])
        deployed = next(item for item in endpoint.deployed_models if item.id == chosen)
        body = json_format.MessageToDict(type(request).pb(request))
        return {
            "predictions": self.predictor(deployed, body.get("instances", [])),
            "deployedModelId": chosen,
            "model": deployed.model,
            "modelVersionId": deployed.model_version_id,
        }

    def _endpoint(self, name: str) -> types.Endpoint:
        from tests.cloud.fake_vertex import Refusal

        if name not in self.endpoints:
            raise Refusal(404, f"Endpoint {name} is not found.")
        return self.endpoints[name]

    @staticmethod
    def _set_traffic(endpoint: types.Endpoint, split: dict[str, int]) -> None:
        from tests.cloud.fake_vertex import Refusal

        ids = {item.id for item in endpoint.deployed_models}
        if set(split) - ids or (split and sum(split.values()) != 100):
            raise Refusal(400, f"traffic_split {split}: unknown model, or the sum is not 100")
        endpoint.traffic_split = split

    # batch predictions

    def create_batch_prediction_job(self, request: Any) -> types.BatchPredictionJob:
        from tests.cloud.fake_vertex import Refusal

        job = request.batch_prediction_job
        if not job.display_name or not job.input_config.instances_format:
            raise Refusal(400, "display_name and input_config.instances_format are required")
        if job.model:
            self._version(job.model)
        job.name = f"{request.parent}/batchPredictionJobs/{len(self.batches) + 1}"
        job.state, job.create_time = types.JobState.JOB_STATE_PENDING, self._now()  # type: ignore[attr-defined]
        self.batches[job.name] = job
        return job

    def get_batch_prediction_job(self, request: Any) -> types.BatchPredictionJob:
        """It succeeds at look number `batch_looks`."""
        from tests.cloud.fake_vertex import Refusal

        if request.name not in self.batches:
            raise Refusal(404, f"{request.name} is not found")
        job = self.batches[request.name]
        self.looks[job.name] = self.looks.get(job.name, 0) + 1
        if job.state in (types.JobState.JOB_STATE_PENDING, types.JobState.JOB_STATE_RUNNING):
            ended = self.looks[job.name] >= self.batch_looks
            states = types.JobState
            if ended and job.error.code:
                job.state = states.JOB_STATE_FAILED
            elif ended:
                job.output_info.gcs_output_directory = self.batch_run(job)
                job.state = states.JOB_STATE_SUCCEEDED
            else:
                job.state = states.JOB_STATE_RUNNING
        return job

    def list_batch_prediction_jobs(self, request: Any) -> types.ListBatchPredictionJobsResponse:
        found = list(self.batches.values())
        return types.ListBatchPredictionJobsResponse(batch_prediction_jobs=found)

    def cancel_batch_prediction_job(self, request: Any) -> None:
        self.batches[request.name].state = types.JobState.JOB_STATE_CANCELLED


def _parent(name: str) -> str:
    return "/".join(name.split("/")[:4])


def _quoted(text: str, field: str) -> str:
    """The value of ``field="value"`` in a filter."""
    _, found, after = text.partition(f'{field}="')
    return after.partition('"')[0] if found else ""
