{{/* Names and labels; every object uses them. */}}
{{- define "grpc-etcd.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "grpc-etcd.fullname" -}}
{{- $name := include "grpc-etcd.name" . -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Where the objects live; a chart that contains this one may put them elsewhere than its own. */}}
{{- define "grpc-etcd.namespace" -}}
{{ .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "grpc-etcd.selector" -}}
app.kubernetes.io/name: {{ include "grpc-etcd.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "grpc-etcd.labels" -}}
{{ include "grpc-etcd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "grpc-etcd.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "grpc-etcd.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* From (dict "image" "version" "root"): a registry for all images of a release goes before the repository. */}}
{{- define "grpc-etcd.image" -}}
{{- $registry := (.root.Values.global | default dict).imageRegistry | default "" | trimSuffix "/" -}}
{{- $repository := .image.repository -}}
{{- if $registry }}{{ $repository = printf "%s/%s" $registry (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") }}{{ end -}}
{{- if .image.digest }}{{ $repository }}@{{ .image.digest }}{{ else }}{{ $repository }}:{{ .image.tag | default .version }}{{ end }}
{{- end }}
