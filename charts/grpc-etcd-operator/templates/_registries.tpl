{{/* Where the registries are and how one logs in: arguments, mounts and volumes follow from the same values. */}}

{{/* All registries by name, as JSON: `default` with its endpoints resolved, and those under `registries`. */}}
{{- define "grpc-etcd.registries" -}}
{{- $default := omit .Values.etcd "bundled" -}}
{{- if .Values.etcd.bundled.enabled -}}
{{- $default = dict "endpoints" (list (printf "%s-etcd.%s:2379" (include "grpc-etcd.fullname" .) .Release.Namespace)) -}}
{{- end -}}
{{- merge (dict "default" $default) .Values.registries | toJson -}}
{{- end }}

{{/* Settings of one registry by the operator's names, from (dict "name" "registry"). */}}
{{- define "grpc-etcd.registry" -}}
{{- $tls := .registry.tls | default dict -}}
{{- $auth := .registry.auth | default dict -}}
endpoints: {{ join "," .registry.endpoints | quote }}
{{- if $tls.secretName }}
ca: /etc/grpc-etcd/{{ .name }}/tls/{{ $tls.caKey | default "ca.crt" }}
{{- if $tls.certKey }}
cert: /etc/grpc-etcd/{{ .name }}/tls/{{ $tls.certKey }}
key: /etc/grpc-etcd/{{ .name }}/tls/{{ $tls.keyKey }}
{{- end }}
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
{{- $flags := dict "endpoints" "etcd-endpoints" "ca" "etcd-ca" "cert" "etcd-cert" "key" "etcd-key" "user" "etcd-user" "passwordFile" "etcd-password-file" }}
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
- --log-level={{ .Values.logLevel }}
{{- if .Values.dryRun }}
- --dry-run
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
  configMap: {name: {{ include "grpc-etcd.fullname" . }}{{ .suffix }}}
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
      {{- range compact (list (.caKey | default "ca.crt") .certKey .keyKey) }}
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

{{/* The operator's settings file, needed only where there are several registries. */}}
{{- define "grpc-etcd.config" -}}
registries:
{{- range $name, $registry := include "grpc-etcd.registries" . | fromJson }}
  {{ $name }}:
    {{- include "grpc-etcd.registry" (dict "name" $name "registry" $registry) | nindent 4 }}
{{- end }}
{{- end }}
