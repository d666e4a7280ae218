{{/* Name of the release's objects. */}}
{{- define "lamella.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name -}}
{{- end -}}
{{- end -}}

{{/*
Name of one object: (list $ "suffix"). At most 63 characters by construction: a long name is cut and
ends in a hash of the whole, so that two long names stay two names. Suffix "" is the name itself.
*/}}
{{- define "lamella.name" -}}
{{- $root := index . 0 -}}
{{- $suffix := index . 1 -}}
{{- $tail := ternary "" (printf "-%s" $suffix) (eq $suffix "") -}}
{{- $name := include "lamella.fullname" $root -}}
{{- $room := sub 63 (len $tail) | int -}}
{{- if gt (len $name) $room -}}
{{- $hash := sha256sum $name | trunc 8 -}}
{{- $name = printf "%s-%s" ($name | trunc (sub $room 9 | int) | trimSuffix "-" | trimSuffix ".") $hash -}}
{{- end -}}
{{- printf "%s%s" $name $tail -}}
{{- end -}}

{{/* Name of a cluster-wide object: two releases of one name in two namespaces are two. */}}
{{- define "lamella.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "lamella.name" (list . "")) -}}
{{- end -}}

{{- define "lamella.selector" -}}
app.kubernetes.io/name: lamella-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "lamella.labels" -}}
app.kubernetes.io/name: lamella-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* Labels of what is not the operator itself: (list $ "what it is"). */}}
{{- define "lamella.labelsOf" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: lamella-{{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* An image's reference: (list $ .Values.image). */}}
{{- define "lamella.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.global.imageRegistry -}}{{ trimSuffix "/" . }}/{{- end -}}
{{- $image.repository -}}
{{- if $image.digest -}}@{{ $image.digest }}{{- else -}}:{{ $image.tag | default $root.Chart.AppVersion }}{{- end -}}
{{- end -}}

{{/* What every container of this chart may do: nothing. No runAsUser: OpenShift chooses one. */}}
{{- define "lamella.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "lamella.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lamella.pullSecrets" -}}
{{- range .Values.pullSecrets }}
- name: {{ . }}
{{- end -}}
{{- end -}}
