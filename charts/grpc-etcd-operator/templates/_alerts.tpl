{{/* The alert rules: spec of the PrometheusRule, and what promtool tests. One section of docs/operations.md belongs to each. */}}
{{- define "grpc-etcd.runbook" -}}
runbook_url: {{ .Values.prometheusRule.runbookBaseUrl }}{{ lower .alert }}
{{- end }}

{{- define "grpc-etcd.alerts" -}}
groups:
  - name: grpc-etcd
    rules:
      - alert: GrpcEtcdOperatorDown
        expr: absent(grpc_etcd_leader)
        for: 5m
        labels: {severity: critical}
        annotations:
          summary: No replica of the grpc-etcd operator is scraped
          description: >-
            Keys live on until their leases run out ({{ .Values.leaseTtlSeconds }} s after the last replica died); then the registry empties.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdOperatorDown") .) | nindent 10 }}
      - alert: GrpcEtcdRegistryUnreachable
        expr: max by (namespace, registry) (grpc_etcd_registry_up) == 0
        for: 2m
        labels: {severity: critical}
        annotations:
          summary: 'No replica reaches the registry {{`{{ $labels.registry }}`}}'
          description: >-
            No change of readiness gets into etcd. After {{ .Values.leaseTtlSeconds }} s without keep-alives keys begin to expire; clients keep their last good set.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdRegistryUnreachable") .) | nindent 10 }}
      - alert: GrpcEtcdNoLeader
        expr: sum by (namespace, registry) (grpc_etcd_leader) == 0
        for: 1m
        labels: {severity: critical}
        annotations:
          summary: 'Nobody writes the registry {{`{{ $labels.registry }}`}}'
          description: Replicas run, but none holds the leader key of this registry. A takeover takes 15 s at most.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdNoLeader") .) | nindent 10 }}
      - alert: GrpcEtcdNotSynced
        expr: max by (namespace, registry) (grpc_etcd_synced) == 0
        for: 5m
        labels: {severity: warning}
        annotations:
          summary: 'The registry {{`{{ $labels.registry }}`}} is not in step with the cluster'
          description: The leader has overdue work or an incomplete view, so the synced mark is withheld and clients keep what they have.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdNotSynced") .) | nindent 10 }}
      - alert: GrpcEtcdEventStreamStale
        expr: max by (namespace, pod, resource) (grpc_etcd_last_event_age_seconds) > 120
        for: 1m
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $labels.pod }}`}} has not heard of {{`{{ $labels.resource }}`}} for two minutes'
          description: The API server sends a bookmark each minute even when nothing changes. At three minutes liveness fails and the container is restarted.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdEventStreamStale") .) | nindent 10 }}
      - alert: GrpcEtcdDriftFound
        expr: sum by (namespace, registry) (increase(grpc_etcd_drift_total[15m])) > 0
        labels: {severity: warning}
        annotations:
          summary: 'A sweep had to mend the registry {{`{{ $labels.registry }}`}}'
          description: Events should have kept it true. What was wrong is in the log, one line per record.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdDriftFound") .) | nindent 10 }}
      - alert: GrpcEtcdRegistrationSlow
        expr: >-
          histogram_quantile(0.99, sum by (namespace, registry, change, le) (rate(grpc_etcd_registration_seconds_bucket[10m])))
          > {{ .Values.prometheusRule.registrationSloSeconds }}
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: 'Changes of readiness ({{`{{ $labels.change }}`}}) reach the registry {{`{{ $labels.registry }}`}} late'
          description: 'The 99th percentile is {{`{{ $value | humanizeDuration }}`}}; the objective is {{ .Values.prometheusRule.registrationSloSeconds }} s.'
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdRegistrationSlow") .) | nindent 10 }}
      - alert: GrpcEtcdConflict
        expr: max by (namespace, registry) (grpc_etcd_conflicts) > 0
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: 'Somebody else holds keys or names that GrpcServices ask for in {{`{{ $labels.registry }}`}}'
          description: The conditions and Events of the GrpcServices say which, and who.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdConflict") .) | nindent 10 }}
      - alert: GrpcEtcdMassDeletion
        expr: sum by (namespace, registry) (increase(grpc_etcd_mass_deletions_total[15m])) > 0
        labels: {severity: warning}
        annotations:
          summary: 'More than half of the registry {{`{{ $labels.registry }}`}} was about to be deleted'
          description: The operator confirmed each Pod by a read of its own before it deleted anything.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdMassDeletion") .) | nindent 10 }}
      - alert: GrpcEtcdCertificateExpiring
        expr: min by (namespace, registry, file) (grpc_etcd_certificate_expiry_timestamp_seconds) - time() < {{ mul .Values.prometheusRule.certificateDays 86400 }}
        labels: {severity: warning}
        annotations:
          summary: '{{`{{ $labels.file }}`}} for the registry {{`{{ $labels.registry }}`}} runs out in {{`{{ $value | humanizeDuration }}`}}'
          description: Renew the certificate in its Secret. The operator takes it up without a restart.
          {{- include "grpc-etcd.runbook" (merge (dict "alert" "GrpcEtcdCertificateExpiring") .) | nindent 10 }}
{{- end }}
