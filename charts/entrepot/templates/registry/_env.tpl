{{/* The registry's settings, as a list of variables. What registry.env adds must not be among what the chart sets. */}}
{{- define "entrepot.registry.env" -}}
{{- $values := .Values.registry -}}
{{- $own := include "entrepot.registry.ownEnv" . -}}
{{- $own }}
{{- range $name, $value := $values.env }}
{{- if contains (printf "- name: %s\n" $name) $own }}
{{- fail (printf "registry.env: the chart sets %s itself" $name) }}
{{- end }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "entrepot.registry.ownEnv" -}}
{{- $values := .Values.registry -}}
{{ include "entrepot.env.common" . }}
- name: ENTREPOT_EXTERNAL_URLS
  value: {{ include "entrepot.externalURLs" . | quote }}
- name: ENTREPOT_SERVICE_ID
  value: {{ include "entrepot.serviceId" . | quote }}
- name: ENTREPOT_TOKEN_URL
  value: http://{{ include "entrepot.fullname" . }}-token:5001
- name: ENTREPOT_WORKERS
  value: {{ $values.workers | quote }}
- name: ENTREPOT_REDIRECT
  value: {{ $values.redirect | quote }}
- name: ENTREPOT_SPARSE_INDEXES
  value: {{ $values.sparseIndexes | quote }}
- name: ENTREPOT_PULL_GRACE
  value: {{ $values.pullGrace | quote }}
- name: ENTREPOT_WARNING
  value: {{ $values.warning | quote }}
- name: ENTREPOT_REQUEST_RATE
  value: {{ $values.requestRate | quote }}
- name: ENTREPOT_REQUEST_BURST
  value: {{ $values.requestBurst | quote }}
- name: ENTREPOT_INSECURE_LOGIN
  value: {{ $values.insecureLogin | quote }}
- name: ENTREPOT_HTTP_TRUSTED_PROXIES
  value: {{ join "," $values.trustedProxies | quote }}
- name: ENTREPOT_HTTP_DRAIN_TIMEOUT
  value: {{ sub $values.terminationGracePeriodSeconds 10 }}s
- name: ENTREPOT_TRACES_ENDPOINT
  value: {{ $values.traces.endpoint | quote }}
- name: ENTREPOT_TRACES_SAMPLE_RATIO
  value: {{ $values.traces.sampleRatio | quote }}
# A download holds a connection for as long as its client takes.
- name: ENTREPOT_S3_MAX_CONNECTIONS
  value: "256"
- name: ENTREPOT_S3_PUBLIC_ENDPOINT
  value: {{ .Values.storage.publicEndpoint | quote }}
{{ include "entrepot.env.database" (list . "registry") }}
{{ include "entrepot.env.storage" . }}
{{ include "entrepot.env.storageKeys" . }}
{{- end -}}
