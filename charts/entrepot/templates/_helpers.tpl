{{/*
Names. Suffixes have at most 17 characters, so that even a StatefulSet's pods keep under 63.
*/}}
{{- define "entrepot.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "entrepot.fullname" -}}
{{- $name := include "entrepot.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
Cluster-wide objects carry namespace and release in their names. The set-up has the same rule (entrepot_setup/crds.py,
binding_name): by it one release sees whether another one lives.
*/}}
{{- define "entrepot.clusterName" -}}
entrepot:{{ .Release.Namespace }}:{{ .Release.Name }}
{{- end -}}

{{/* Labels that never change, for selectors. Takes a list: root context, component. */}}
{{- define "entrepot.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "entrepot.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of an object. Takes a list: root context, component. */}}
{{- define "entrepot.labels" -}}
{{- $root := index . 0 -}}
{{- $own := include "entrepot.selectorLabels" . | fromYaml -}}
{{- $own = merge $own (dict
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "app.kubernetes.io/part-of" "entrepot"
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")) -}}
{{- toYaml (merge $own $root.Values.commonLabels) -}}
{{- end -}}

{{/* Labels of pods: without version and chart, which would roll every pod at every upgrade of the chart alone. */}}
{{- define "entrepot.podLabels" -}}
{{- $root := index . 0 -}}
{{- $own := include "entrepot.selectorLabels" . | fromYaml -}}
{{- toYaml (merge $own (dict "app.kubernetes.io/part-of" "entrepot") $root.Values.commonLabels) -}}
{{- end -}}

{{/* Image reference. Takes a list: root context, a map of registry, repository, tag and digest. */}}
{{- define "entrepot.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := printf "%s/%s" $image.registry $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "entrepot.secret.database" -}}{{ include "entrepot.fullname" . }}-database{{- end -}}
{{- define "entrepot.secret.storage" -}}{{ include "entrepot.fullname" . }}-storage{{- end -}}
{{- define "entrepot.secret.signingKeys" -}}{{ include "entrepot.fullname" . }}-signing-keys{{- end -}}
{{- define "entrepot.secret.credentialsKey" -}}{{ include "entrepot.fullname" . }}-credentials-key{{- end -}}

{{- define "entrepot.secret.users" -}}
{{ default (printf "%s-users" (include "entrepot.fullname" .)) .Values.token.users.existingSecret }}
{{- end -}}

{{/* What tokens of the cluster must be made for. */}}
{{- define "entrepot.audience" -}}
{{ default (include "entrepot.serviceId" .) .Values.token.audience }}
{{- end -}}

{{/* The fixed id in tokens: names the release, never a host. */}}
{{- define "entrepot.serviceId" -}}
{{ .Release.Name }}.{{ .Release.Namespace }}
{{- end -}}

{{/* Addresses of the registry for clients, separated by commas. */}}
{{- define "entrepot.externalURLs" -}}
{{- if .Values.externalURLs -}}
{{- join "," .Values.externalURLs -}}
{{- else if eq .Values.registry.service.type "ClusterIP" -}}
{{- printf "http://%s-registry.%s.svc:%v" (include "entrepot.fullname" .) .Release.Namespace .Values.registry.service.port -}}
{{- else -}}
{{- printf "http://localhost:%v" .Values.registry.service.nodePort -}}
{{- end -}}
{{- end -}}

{{/* What every pod of the release has; all of them pass the restricted Pod Security profile. */}}
{{- define "entrepot.podSpec" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What every container of the release has. Its reason of failure is then in its status. */}}
{{- define "entrepot.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Replicas on different nodes where there are several. Takes a list: root context, component. */}}
{{- define "entrepot.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "entrepot.selectorLabels" . | nindent 8 }}
{{- end -}}

{{/* A directory for temporary files, since the root file system is read-only. */}}
{{- define "entrepot.tmpMount" -}}
- name: tmp
  mountPath: /tmp
{{- end -}}
{{- define "entrepot.tmpVolume" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end -}}

{{/* Probes of a part on its metrics port. A start may take as long as PostgreSQL does. */}}
{{- define "entrepot.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http-metrics}
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet: {path: /healthz, port: http-metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http-metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{- define "entrepot.env.common" -}}
- name: ENTREPOT_LOG_LEVEL
  value: {{ .Values.logLevel | quote }}
{{- end -}}

{{/* How a part reaches PostgreSQL, as its own role. Takes a list: root context, role, and the most connections if fewer than others have. */}}
{{- define "entrepot.env.database" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
- name: ENTREPOT_DATABASE_DSN
  value: {{ include "entrepot.dsn" (list $root (printf "entrepot_%s" $role) $root.Values.database.name) | quote }}
- name: ENTREPOT_DATABASE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "entrepot.secret.database" $root }}
      key: {{ $role }}-password
- name: ENTREPOT_DATABASE_POOL_SIZE
  value: {{ ternary (min $root.Values.database.poolSize (index (append . 0) 2)) $root.Values.database.poolSize (gt (len .) 2) | quote }}
{{- end -}}

{{/* Takes a list: root context, user, database. */}}
{{- define "entrepot.dsn" -}}
{{- $root := index . 0 -}}
postgresql://{{ index . 1 }}@{{ include "entrepot.fullname" $root }}-database:5432/{{ index . 2 }}
{{- end -}}

{{/* Where S3 is. */}}
{{- define "entrepot.env.storage" -}}
- name: ENTREPOT_S3_ENDPOINT
  value: {{ printf "http://%s-storage:7070" (include "entrepot.fullname" .) | quote }}
- name: ENTREPOT_S3_REGION
  value: {{ .Values.storage.region | quote }}
- name: ENTREPOT_S3_BUCKET
  value: {{ .Values.storage.bucket | quote }}
- name: ENTREPOT_S3_ADDRESSING
  value: path
{{- end -}}

{{/* The keys to S3. */}}
{{- define "entrepot.env.storageKeys" -}}
- name: ENTREPOT_S3_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ include "entrepot.secret.storage" . }}
      key: access-key-id
- name: ENTREPOT_S3_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "entrepot.secret.storage" . }}
      key: secret-access-key
{{- end -}}
