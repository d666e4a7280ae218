{{/* The operator's flags: what is empty is left to the operator itself. */}}
{{- define "lamella.args" -}}
{{- $models := .Values.models -}}
- --worker-image={{ include "lamella.image" (list . .Values.workerImage) }}
- --operator-image={{ include "lamella.image" (list . .Values.image) }}
- --namespace={{ .Release.Namespace }}
- --lease={{ include "lamella.name" (list . "") }}
- --root-secret={{ include "lamella.name" (list . "root") }}
- --cluster-domain={{ $models.clusterDomain }}
- --worker-runtime-bytes={{ $models.memory.workerRuntime }}
- --staging-bytes={{ $models.memory.staging }}
- --device-runtime-bytes={{ $models.memory.deviceRuntime }}
- --gateway-memory-bytes={{ $models.memory.gateway }}
- --inspector-memory-bytes={{ $models.memory.inspector }}
- --allow-host-path={{ $models.allowHostPath }}
- --fs-group={{ $models.fsGroup }}
- --restrict-egress={{ $models.restrictEgress }}
{{- with .Values.namespaces }}
- --namespaces={{ join "," . }}
{{- end }}
{{- with .Values.pullPolicy }}
- --pull-policy={{ . }}
{{- end }}
{{- with .Values.pullSecrets }}
- --image-pull-secrets={{ join "," . }}
{{- end }}
{{- with $models.hubEndpoint }}
- --hub-endpoint={{ . }}
{{- end }}
{{- with $models.proxy.http }}
- {{ printf "--proxy=HTTP_PROXY=%s" . | quote }}
{{- end }}
{{- with $models.proxy.https }}
- {{ printf "--proxy=HTTPS_PROXY=%s" . | quote }}
{{- end }}
{{- with $models.proxy.noProxy }}
- {{ printf "--proxy=NO_PROXY=%s" . | quote }}
{{- end }}
{{- with $models.caConfigMap }}
- --ca-config-map={{ . }}
{{- end }}
{{- with $models.metricsNamespace }}
- --metrics-namespace={{ . }}
{{- end }}
{{- with $models.priorityClassName }}
- --priority-class={{ . }}
{{- end }}
{{- end -}}
