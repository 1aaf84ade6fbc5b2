"""Variables that `topk serve` sets and deploy/ does not."""

from service.rayserve.launcher import REPLICA_PORT_VARIABLES

#: What `topk serve` sets only because it shares a machine with others, or has a Ray of its own; and what KubeRay sets.
LOCAL_VARIABLES = {
    "PYTHONUTF8",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_COLOR_PREFIX",
    "RAY_DEDUP_LOGS",
    "RAY_DISABLE_WORKER_LOG_PREFIX",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE",
    "RAY_SERVE_HAPROXY_SOCKET_PATH",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_PORT_QUARANTINE_S",  # a node of its own has ports enough for Serve's longer one
    "RAY_TMPDIR",
    "RAY_USAGE_STATS_ENABLED",  # the Dockerfile does
    *REPLICA_PORT_VARIABLES,
    "SERVE_HAPROXY_HOST",
    "SERVE_INNER_HOST",
    "SERVE_PUBLIC_GRPC",
}
