{{/* The alert rules: spec of the PrometheusRule, and what promtool tests. One section of docs/operations.md belongs to each. */}}
{{- define "grpc-etcd.runbook" -}}
{{- with .Values.prometheusRule.runbookBaseUrl -}}
runbook_url: {{ . }}{{ lower $.alert }}
{{- end }}
{{- end }}

{{/* The replicas of this installation, as labels: others may be in the same Prometheus, even in the same namespace. */}}
{{- define "grpc-etcd.replicas" -}}
namespace="{{ include "grpc-etcd.namespace" . }}", pod=~"{{ include "grpc-etcd.fullname" . }}-[a-z0-9]+-[a-z0-9]+"
{{- end }}

{{- /* Leases are renewed each third of their time to live: one that was about to be has two thirds left. */ -}}
{{- define "grpc-etcd.expirySeconds" -}}
{{ div (mul .Values.leaseTtlSeconds 2) 3 }}
{{- end }}

{{- define "grpc-etcd.alerts" -}}
{{- $of := include "grpc-etcd.replicas" . }}
groups:
  - name: grpc-etcd
    rules:
      - alert: GrpcEtcdOperatorDown
        expr: absent(grpc_etcd_operator_leader{ {{- $of -}} })
        for: 1m
        labels: {severity: critical}
        annotations:
          summary: No replica of the grpc-etcd operator is scraped
          description: >-
            Keys begin to expire {{ include "grpc-etcd.expirySeconds" . }} s after the last replica stopped; {{ .Values.leaseTtlSeconds }} s after it the registry is empty.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdOperatorDown") .) | nindent 10 }}
      - alert: GrpcEtcdRegistryUnreachable
        expr: max by (namespace, registry) (grpc_etcd_operator_registry_up{ {{- $of -}} }) == 0
        for: 2m
        labels: {severity: critical}
        annotations:
          summary: 'No replica reaches the registry {{`{{ $labels.registry }}`}}'
          description: >-
            No change of readiness is written to etcd. Keys begin to expire {{ include "grpc-etcd.expirySeconds" . }} s after the connection was lost; Python clients keep their last known endpoints.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdRegistryUnreachable") .) | nindent 10 }}
{{- if not .Values.dryRun }}
      - alert: GrpcEtcdNoLeader
        expr: >-
          sum by (namespace, registry) (grpc_etcd_operator_leader{ {{- $of -}} }) == 0
          or min by (namespace, registry) (grpc_etcd_operator_no_leader_seconds{ {{- $of -}} }) > 15
        for: 1m
        labels: {severity: critical}
        annotations:
          summary: 'No replica writes the registry {{`{{ $labels.registry }}`}}'
          description: >-
            Replicas run, but none is leader of this registry; a takeover should take seconds. Keys begin to expire {{ include "grpc-etcd.expirySeconds" . }} s after the last leader was lost.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdNoLeader") .) | nindent 10 }}
{{- end }}
{{- if not .Values.dryRun }}
      - alert: GrpcEtcdNotSynced
        expr: max by (namespace, registry) (grpc_etcd_operator_synced{ {{- $of -}} }) == 0
        for: 5m
        labels: {severity: warning}
        annotations:
          summary: 'The registry {{`{{ $labels.registry }}`}} is not synced'
          description: The leader has overdue changes, or has not listed everything, so the synced key is absent and clients keep their current endpoints.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdNotSynced") .) | nindent 10 }}
{{- end }}
      - alert: GrpcEtcdEventStreamStale
        expr: max by (namespace, pod, resource) (grpc_etcd_operator_last_event_age_seconds{ {{- $of -}} }) > 120
        for: 1m
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $labels.pod }}`}} has received no event of {{`{{ $labels.resource }}`}} for two minutes'
          description: The API server sends a bookmark each minute even when nothing changes, and a watch that is silent for longer is restarted with a list; neither arrived.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdEventStreamStale") .) | nindent 10 }}
      - alert: GrpcEtcdDriftFound
        expr: sum by (namespace) (increase(grpc_etcd_operator_drift_total{ {{- $of -}} }[15m])) > 0
        labels: {severity: warning}
        annotations:
          summary: A resync had to correct the operator's cache
          description: Watch events should have kept the cache current. The log has one line for each corrected object.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdDriftFound") .) | nindent 10 }}
      - alert: GrpcEtcdRegistrationSlow
        expr: >-
          histogram_quantile(0.99, sum by (namespace, registry, change, le) (rate(grpc_etcd_operator_registration_duration_seconds_bucket{ {{- $of -}} }[10m])))
          > {{ .Values.prometheusRule.registrationSloSeconds }}
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: 'Changes of readiness ({{`{{ $labels.change }}`}}) reach the registry {{`{{ $labels.registry }}`}} late'
          description: 'The 99th percentile is {{`{{ $value | humanizeDuration }}`}}; the objective is {{ .Values.prometheusRule.registrationSloSeconds }} s.'
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdRegistrationSlow") .) | nindent 10 }}
      - alert: GrpcEtcdConflict
        expr: max by (namespace, registry) (grpc_etcd_operator_conflicts{ {{- $of -}} }) > 0
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: 'Keys or names that GrpcServices want in {{`{{ $labels.registry }}`}} have another owner'
          description: The conditions and Events of the GrpcServices have the keys or names, and their owners.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdConflict") .) | nindent 10 }}
      - alert: GrpcEtcdMassDeletion
        expr: sum by (namespace) (increase(grpc_etcd_operator_mass_deletions_total{ {{- $of -}} }[15m])) > 0
        labels: {severity: warning}
        annotations:
          summary: More than half of the Pods that have keys were missing from a list
          description: The operator confirmed each missing Pod with a separate read before it deleted any key.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdMassDeletion") .) | nindent 10 }}
      - alert: GrpcEtcdCertificateExpiring
        expr: min by (namespace, registry, file) (grpc_etcd_operator_certificate_expiry_timestamp_seconds{ {{- $of -}} }) - time() < {{ mul .Values.prometheusRule.certificateDays 86400 }}
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $labels.file }}`}} for the registry {{`{{ $labels.registry }}`}} expires in {{`{{ $value | humanizeDuration }}`}}'
          description: Renew the certificate in its Secret. The operator loads it without a restart.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdCertificateExpiring") .) | nindent 10 }}
{{- if not .Values.dryRun }}
      - alert: GrpcEtcdReadyNotRegistered
        # What the leader counts. One that has never reached the registry knows of no leader, and counts them all.
        expr: >-
          max by (namespace, registry) (grpc_etcd_operator_ready_not_registered{ {{- $of -}} }
          and on (namespace, pod, registry) grpc_etcd_operator_leader{ {{- $of -}} } == 1) > 0
          or max by (namespace, registry) (grpc_etcd_operator_ready_not_registered{ {{- $of -}} }) > 0
          unless on (namespace, registry) grpc_etcd_operator_leader{ {{- $of -}} } == 1
        for: 2m
        labels: {severity: critical}
        annotations:
          summary: '{{`{{ $value }}`}} ready Pods are not in the registry {{`{{ $labels.registry }}`}}'
          description: GrpcServices select these Pods, but clients do not find them. The conditions of the GrpcServices have the reason.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdReadyNotRegistered") .) | nindent 10 }}
{{- end }}
      - alert: GrpcEtcdRateLimited
        expr: max by (namespace, registry) (grpc_etcd_operator_rate_limited_objects{ {{- $of -}} }) > 0
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $value }}`}} Pods and GrpcServices wait for the registry {{`{{ $labels.registry }}`}}: their namespace has written too much'
          description: Values there change all the time. The condition Programmed and the log name the namespace; no other one waits for it.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdRateLimited") .) | nindent 10 }}
      - alert: GrpcEtcdNotAccepted
        # Names with another owner have their own alert, GrpcEtcdConflict.
        expr: max by (namespace, reason) (grpc_etcd_operator_not_accepted{ {{- $of -}}, reason!="NameTaken"}) > 0
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $value }}`}} GrpcServices are not accepted: {{`{{ $labels.reason }}`}}'
          description: Their specs are not applied. The condition Accepted says what to change.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdNotAccepted") .) | nindent 10 }}
      - alert: GrpcEtcdGatesWaiting
        expr: max by (namespace) (grpc_etcd_operator_waiting_gates{ {{- $of -}} }) > 0
        for: 2m
        labels: {severity: critical}
        annotations:
          summary: '{{`{{ $value }}`}} Pods are ready except for the gate grpc-etcd.dev/registered'
          description: They get no traffic and their rollouts stall, until their keys can be written and the operator may open the gate.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdGatesWaiting") .) | nindent 10 }}
      - alert: GrpcEtcdCampaignFailing
        # A replica that alone does not reach etcd fails as well, whoever leads; GrpcEtcdNoLeader says whether nobody does.
        expr: >-
          sum by (namespace, registry, code) (
          rate(grpc_etcd_operator_campaign_errors_total{ {{- $of -}}, code!~"Unavailable|DeadlineExceeded"}[2m])) > 0
        for: 3m
        labels: {severity: critical}
        annotations:
          summary: 'etcd rejects attempts to become the leader of the registry {{`{{ $labels.registry }}`}}: {{`{{ $labels.code }}`}}'
          description: >-
            While there is no leader nothing is written, and keys begin to expire {{ include "grpc-etcd.expirySeconds" . }} s after the last leader was lost. The log has the remedy.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdCampaignFailing") .) | nindent 10 }}
      - alert: GrpcEtcdForeignCluster
        expr: max by (namespace, registry) (grpc_etcd_operator_foreign_cluster{ {{- $of -}} }) > 0
        labels: {severity: critical}
        annotations:
          summary: 'Another Kubernetes cluster uses the same cluster id in the registry {{`{{ $labels.registry }}`}}'
          description: This installation writes nothing there, because the two clusters would delete each other's keys. Give one of them another clusterId.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdForeignCluster") .) | nindent 10 }}
      - alert: GrpcEtcdUnexpectedErrors
        # A series that is new has grown from nothing, which increase() does not see.
        expr: >-
          sum by (namespace, part) (
          increase(grpc_etcd_operator_unexpected_errors_total{ {{- $of -}} }[15m]) > 0
          or (grpc_etcd_operator_unexpected_errors_total{ {{- $of -}} } unless grpc_etcd_operator_unexpected_errors_total{ {{- $of -}} } offset 15m)
          ) > 0
        labels: {severity: warning}
        annotations:
          summary: 'Unexpected error in {{`{{ $labels.part }}`}}'
          description: All other work continues, and the failed operation is retried. The log has the traceback and the object.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdUnexpectedErrors") .) | nindent 10 }}
      - alert: GrpcEtcdNamespacesUnreadable
        expr: max by (namespace) (grpc_etcd_operator_unreadable_namespaces{ {{- $of -}} }) > 0
        for: 5m
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $value }}`}} watched namespaces cannot be read'
          description: Keys of their Pods stay as they are. The log has the namespaces and the missing permission.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdNamespacesUnreadable") .) | nindent 10 }}
      - alert: GrpcEtcdPrefixesRefused
        expr: max by (namespace, registry) (grpc_etcd_operator_denied_prefixes{ {{- $of -}} }) > 0
        for: 2m
        labels: {severity: warning}
        annotations:
          summary: 'The operator is not allowed to read or write {{`{{ $value }}`}} key prefixes in the registry {{`{{ $labels.registry }}`}}'
          description: GrpcServices with keys there are not programmed; all others are. Their conditions have the etcdctl command that grants the permission.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdPrefixesRefused") .) | nindent 10 }}
{{- if .Values.prometheusRule.clients }}
  # Of applications that expose the metrics of their registries (docs/client.md), wherever they run.
  # The label `service` is `exported_service` where a ServiceMonitor adds its own; OpenTelemetry's are called otherwise.
  - name: grpc-etcd-clients
    rules:
      - alert: GrpcEtcdClientNoEndpoints
        expr: grpc_etcd_client_callable_endpoints == 0
        for: 2m
        labels: {severity: critical}
        annotations:
          summary: 'A client of {{`{{ or $labels.grpc_etcd_client_service $labels.exported_service $labels.service }}`}} has no endpoint to call'
          description: Its calls fail. Its log has the reason and the remedy in one line.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdClientNoEndpoints") .) | nindent 10 }}
      - alert: GrpcEtcdClientDisconnected
        expr: grpc_etcd_client_connected == 0
        for: 5m
        labels: {severity: warning}
        annotations:
          summary: 'A client of {{`{{ or $labels.grpc_etcd_client_service $labels.exported_service $labels.service }}`}} does not reach etcd'
          description: It keeps its last known endpoints, and learns of no change.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdClientDisconnected") .) | nindent 10 }}
      - alert: GrpcEtcdClientStale
        expr: grpc_etcd_client_stale == 1
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: 'A client of {{`{{ or $labels.grpc_etcd_client_service $labels.exported_service $labels.service }}`}} uses endpoints that are no longer in etcd'
          description: No synced key confirms that they were removed on purpose.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdClientStale") .) | nindent 10 }}
      - alert: GrpcEtcdRegistrationLost
        expr: grpc_etcd_client_registered < grpc_etcd_client_registrations
        for: 5m
        labels: {severity: critical}
        annotations:
          summary: 'A server of {{`{{ or $labels.grpc_etcd_client_service $labels.exported_service $labels.service }}`}} is not registered'
          description: Its key is not in etcd, so clients do not find it.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdRegistrationLost") .) | nindent 10 }}
{{- end }}
{{- end }}
