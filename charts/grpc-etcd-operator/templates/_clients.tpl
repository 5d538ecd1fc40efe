{{/* What clients need to reach the registry `default`: endpoints that resolve where they run, a CA, a user. */}}

{{/*
An endpoint as clients of a namespace dial it, from (dict "endpoint" "namespace" "root").
Names that resolve in the release's namespace alone are completed for others: a Service (`etcd`) and a Pod of a
StatefulSet (`etcd-0.etcd`, `etcd-0.etcd-headless`). `etcd.infra` resolves everywhere, as Service.Namespace.
*/}}
{{- define "grpc-etcd.clientEndpoint" -}}
{{- $scheme := regexFind "^https?://" .endpoint -}}
{{- $port := regexFind ":[0-9]+/?$" .endpoint -}}
{{- $host := .endpoint | trimPrefix $scheme | trimSuffix $port -}}
{{- $labels := splitList "." $host -}}
{{- $isMember := and (eq (len $labels) 2) (regexMatch "-[0-9]+$" (first $labels)) -}}
{{- $set := regexReplaceAll "-[0-9]+$" (first $labels) "" -}}
{{- $isOfSet := and $isMember (or (eq $set (last $labels)) (hasPrefix (printf "%s-" $set) (last $labels))) -}}
{{- if or (eq .namespace (include "grpc-etcd.namespace" .root)) (hasPrefix "[" $host) (eq $host "localhost") -}}
{{- .endpoint -}}
{{- else if or (eq (len $labels) 1) $isOfSet -}}
{{- printf "%s%s.%s.svc.%s%s" $scheme $host (include "grpc-etcd.namespace" .root) .root.Values.clusterDomain $port -}}
{{- else if $isMember -}}
{{- fail (printf "clientConfig.namespaces: %s may be a name of the namespace %s alone, so clients in %s would not reach it: write the full name in etcd.endpoints or clientConfig.endpoints, as in %s.%s.svc.%s%s" .endpoint (include "grpc-etcd.namespace" .root) .namespace $host (include "grpc-etcd.namespace" .root) .root.Values.clusterDomain $port) -}}
{{- else -}}
{{- .endpoint -}}
{{- end -}}
{{- end }}

{{/* All endpoints of clients in a namespace, from (dict "namespace" "root"). Where TLS trusts public CAs, https:// says so. */}}
{{- define "grpc-etcd.clientEndpoints" -}}
{{- $default := get (include "grpc-etcd.registries" .root | fromJson) "default" -}}
{{- $tls := $default.tls | default dict -}}
{{- $https := and $tls.secretName (not (include "grpc-etcd.caKey" $tls)) (not .root.Values.clientConfig.endpoints) -}}
{{- $found := list -}}
{{- range .root.Values.clientConfig.endpoints | default $default.endpoints -}}
{{- $one := include "grpc-etcd.clientEndpoint" (dict "endpoint" . "namespace" $.namespace "root" $.root) -}}
{{- $found = append $found (ternary (printf "https://%s" $one) $one (and (not (empty $https)) (not (hasPrefix "https://" $one)))) -}}
{{- end -}}
{{- join "," $found -}}
{{- end }}

{{/* The certificate of etcd's CA; empty where clients need none. */}}
{{- define "grpc-etcd.clientCa" -}}
{{- $default := get (include "grpc-etcd.registries" . | fromJson) "default" -}}
{{- $tls := $default.tls | default dict -}}
{{- $isPlain := hasPrefix "http://" (first (.Values.clientConfig.endpoints | default $default.endpoints)) -}}
{{- if .Values.clientConfig.ca -}}
{{- .Values.clientConfig.ca -}}
{{- else if and $tls.secretName (include "grpc-etcd.caKey" $tls) (not $isPlain) (not (hasKey (.Values.clientConfig.extra | default dict) "GRPC_ETCD_CA")) -}}
{{- $secret := lookup "v1" "Secret" (include "grpc-etcd.namespace" .) $tls.secretName | default dict -}}
{{- $found := get ($secret.data | default dict) (include "grpc-etcd.caKey" $tls) -}}
{{- if not $found -}}
{{- fail (printf "clientConfig.ca is empty, and the CA's certificate cannot be read from the Secret %s (key %s) in %s: create it first, or give clients the certificate with --set-file clientConfig.ca=ca.crt (as with `helm template`, which does not see the cluster), or a path with clientConfig.extra.GRPC_ETCD_CA, or set clientConfig.enabled=false" $tls.secretName (include "grpc-etcd.caKey" $tls) (include "grpc-etcd.namespace" .)) -}}
{{- end -}}
{{- b64dec $found -}}
{{- end -}}
{{- end }}

{{/* The variables of clients in a namespace, from (dict "namespace" "root"). */}}
{{- define "grpc-etcd.clientVariables" -}}
{{- $values := .root.Values.clientConfig -}}
{{- $default := get (include "grpc-etcd.registries" .root | fromJson) "default" -}}
{{- $found := dict "GRPC_ETCD_ENDPOINTS" (include "grpc-etcd.clientEndpoints" .) -}}
{{- with include "grpc-etcd.clientCa" .root }}{{ $_ := set $found "GRPC_ETCD_CA" . }}{{ end -}}
{{- with ($default.tls | default dict).serverName }}{{ $_ := set $found "GRPC_ETCD_SERVER_NAME" . }}{{ end -}}
{{- with $values.auth.user }}{{ $_ := set $found "GRPC_ETCD_USER" . }}{{ end -}}
{{- with .root.Values.prefix }}{{ $_ := set $found "GRPC_ETCD_PREFIX" . }}{{ end -}}
{{- merge (deepCopy ($values.extra | default dict)) $found | toYaml -}}
{{- end }}
