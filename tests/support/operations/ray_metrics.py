"""Ray's own metrics that the alert rules ask for."""

#: Of Ray's own metrics, those that rules ask for; test_deploy_serve.py finds them on a real Ray's page.
OF_RAY = {
    "ray_serve_autoscaling_target_replicas": {"application", "deployment"},
    "ray_serve_deployment_replica_healthy": {"application", "deployment", "replica"},
}
