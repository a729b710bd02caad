"""Component `deploy_endpoint`: a promoted model goes into production on a Vertex AI endpoint."""

from kfp.dsl import Input, Metrics, Model, Output

from pipestill.components._base import component


@component
def deploy_endpoint(
    served: Input[Model],
    decision: str,
    deployment: Output[Metrics],
    project: str,
    location: str,
    staging_bucket: str,
    serving_image: str,
    model_display_name: str = "",
    endpoint: str = "pipestill",
    reason: str = "",
    ledger_uri: str = "",
    smoke_uri: str = "",
    service_account: str = "",
    encryption_spec_key_name: str = "",
    labels: str = "",
    machine_type: str = "n1-standard-4",
    serving_accelerator: str = "",
    accelerator_count: int = 0,
    min_replicas: int = 1,
    max_replicas: int = 1,
    spot: bool = False,
    dedicated_endpoint: bool = True,
    traffic_stages: str = "100",
    stage_wait_s: float = 0.0,
    alias: str = "production",
) -> str:
    """Uploads a version, lets it answer, shifts the traffic; undoes everything where it fails.

    Args:
        served: the folder that a deploy step wrote.
        decision: the gate's; anything but promote is recorded and changes nothing.
        deployment: event, version, endpoint, digest, number of the ledger's entry.
        project: Google Cloud project.
        location: region.
        staging_bucket: gs://BUCKET for the model's files.
        serving_image: the target serve of containers/Dockerfile in Artifact Registry.
        model_display_name: the one model whose versions these are; empty = the endpoint's name.
        endpoint: name (made if missing), id or resource name.
        reason: of the decision: what the gate said, or a person's override.
        ledger_uri: JSONL file or gs:// object; empty = <staging_bucket>/ledger/<endpoint>.jsonl.
        smoke_uri: rows to ask before any traffic; empty = one fixed question.
        service_account: of the serving containers.
        encryption_spec_key_name: key of model and endpoint.
        labels: KEY=VALUE with commas between them.

    The other parameters are the fields of `pipestill.cloud.deploy_options.DeployOptions`.

    Returns:
        promoted or not_promoted.
    """
    given = dict(locals())
    from pipestill.cloud.deploying import deploy_component
    from pipestill.records import write_json

    found = deploy_component(served.path, given)
    deployment.metadata.update(found)
    write_json(deployment.path, found)
    return found["event"]
