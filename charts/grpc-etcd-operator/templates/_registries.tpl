{{/* Where the registries are and how one logs in: arguments, mounts and volumes follow from the same values. */}}

{{/* All registries by name, as JSON: `default` with its endpoints resolved, and those under `registries`. */}}
{{- define "grpc-etcd.registries" -}}
{{- $default := omit .Values.etcd "bundled" -}}
{{- if .Values.etcd.bundled.enabled -}}
{{- $default = dict "endpoints" (list (printf "%s-etcd.%s:2379" (include "grpc-etcd.fullname" .) (include "grpc-etcd.namespace" .))) -}}
{{- end -}}
{{- merge (dict "default" $default) (.Values.registries | default dict) | toJson -}}
{{- end }}

{{/* Key of the CA in a registry's Secret, from its `tls`: empty only where a value says so. */}}
{{- define "grpc-etcd.caKey" -}}
{{ ternary .caKey "ca.crt" (hasKey . "caKey") }}
{{- end }}

{{/* Settings of one registry by the operator's names, from (dict "name" "registry"). */}}
{{- define "grpc-etcd.registry" -}}
{{- $tls := .registry.tls | default dict -}}
{{- $auth := .registry.auth | default dict -}}
endpoints: {{ join "," .registry.endpoints | quote }}
{{- if $tls.secretName }}
{{- with include "grpc-etcd.caKey" $tls }}
ca: /etc/grpc-etcd/{{ $.name }}/tls/{{ . }}
{{- end }}
{{- if $tls.certKey }}
cert: /etc/grpc-etcd/{{ .name }}/tls/{{ $tls.certKey }}
key: /etc/grpc-etcd/{{ .name }}/tls/{{ $tls.keyKey }}
{{- end }}
{{- end }}
{{- with $tls.serverName }}
serverName: {{ . | quote }}
{{- end }}
{{- if $auth.user }}
user: {{ $auth.user | quote }}
passwordFile: /etc/grpc-etcd/{{ .name }}/auth/{{ $auth.passwordKey | default "password" }}
{{- end }}
{{- end }}

{{/* The flags that `run` and `cleanup` share. */}}
{{- define "grpc-etcd.args" -}}
{{- if .Values.registries }}
- --config=/etc/grpc-etcd/config/config.yaml
{{- else }}
{{- $flags := dict "endpoints" "etcd-endpoints" "ca" "etcd-ca" "cert" "etcd-cert" "key" "etcd-key" "serverName" "etcd-server-name" "user" "etcd-user" "passwordFile" "etcd-password-file" }}
{{- $registry := get (include "grpc-etcd.registries" . | fromJson) "default" }}
{{- range $key, $value := include "grpc-etcd.registry" (dict "name" "default" "registry" $registry) | fromYaml }}
- --{{ get $flags $key }}={{ $value }}
{{- end }}
{{- end }}
{{- with .Values.prefix }}
- --prefix={{ . }}
{{- end }}
{{- with .Values.clusterId }}
- --cluster-id={{ . }}
{{- end }}
{{- range .Values.watchNamespaces }}
- --namespace={{ . }}
{{- end }}
{{- with .Values.podSelector }}
- {{ printf "--pod-selector=%s" . | quote }}
{{- end }}
- --pod-watch={{ .Values.podWatch }}
- --log-level={{ .Values.logLevel }}
{{- if .Values.dryRun }}
- --dry-run
{{- end }}
{{- end }}

{{/* The registry `default` as variables, which the command line reads too: `kubectl exec deploy/... -- grpc-etcd ls` works as it is. */}}
{{- define "grpc-etcd.env" -}}
{{- $variables := dict "endpoints" "ENDPOINTS" "ca" "CA" "cert" "CERT" "key" "KEY" "serverName" "SERVER_NAME" "user" "USER" "passwordFile" "PASSWORD_FILE" }}
{{- $registry := get (include "grpc-etcd.registries" . | fromJson) "default" }}
{{- range $key, $value := include "grpc-etcd.registry" (dict "name" "default" "registry" $registry) | fromYaml }}
- {name: GRPC_ETCD_OPERATOR_{{ get $variables $key }}, value: {{ $value | quote }}}
{{- end }}
{{- if .Values.registries }}
- {name: GRPC_ETCD_OPERATOR_CONFIG, value: /etc/grpc-etcd/config/config.yaml}
{{- end }}
{{- with .Values.prefix }}
- {name: GRPC_ETCD_OPERATOR_PREFIX, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "grpc-etcd.mounts" -}}
{{- if .Values.registries }}
- {name: config, mountPath: /etc/grpc-etcd/config, readOnly: true}
{{- end }}
{{- range $name, $registry := include "grpc-etcd.registries" . | fromJson }}
{{- if ($registry.tls | default dict).secretName }}
- {name: {{ $name }}-tls, mountPath: /etc/grpc-etcd/{{ $name }}/tls, readOnly: true}
{{- end }}
{{- if ($registry.auth | default dict).user }}
- {name: {{ $name }}-auth, mountPath: /etc/grpc-etcd/{{ $name }}/auth, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "grpc-etcd.volumes" -}}
{{- if .Values.registries }}
- name: config
  configMap: {name: "{{ include "grpc-etcd.fullname" . }}{{ .suffix }}"}
{{- end }}
{{- range $name, $registry := include "grpc-etcd.registries" . | fromJson }}
{{- /* Keys are named, so that one that is not there holds the Pod back with an Event that says so, not in a crash loop. */}}
{{- with $registry.tls | default dict }}
{{- if .secretName }}
- name: {{ $name }}-tls
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
    items:
      {{- range compact (list (include "grpc-etcd.caKey" .) .certKey .keyKey) }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}
{{- with $registry.auth | default dict }}
{{- if .user }}
- name: {{ $name }}-auth
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
    items:
      - {key: {{ .passwordKey | default "password" }}, path: {{ .passwordKey | default "password" }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The operator's settings file, needed only where there are several registries. With `outlives` it has those alone that
are still there when the release is gone.
*/}}
{{- define "grpc-etcd.config" -}}
registries:
{{- range $name, $registry := include "grpc-etcd.registries" . | fromJson }}
{{- if not (and $.outlives $.Values.etcd.bundled.enabled (eq $name "default")) }}
  {{ $name }}:
    {{- include "grpc-etcd.registry" (dict "name" $name "registry" $registry) | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
