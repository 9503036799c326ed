{{/*
The pod of the set-up Job, apart from the Job, because the Job's name is a hash of it: a Job cannot be changed, so whatever
changes here makes a new one at the next upgrade, and applying the same release twice changes nothing.
*/}}
{{- define "entrepot.setup.pod" -}}
metadata:
  labels:
    {{- include "entrepot.podLabels" (list . "setup") | nindent 4 }}
spec:
  {{- include "entrepot.podSpec" . | nindent 2 }}
  serviceAccountName: {{ include "entrepot.fullname" . }}-setup
  restartPolicy: OnFailure
  containers:
    - name: setup
      image: {{ include "entrepot.image" (list . .Values.image) }}
      {{- include "entrepot.container" . | nindent 6 }}
      args: [entrepot_setup, install]
      env:
        {{- include "entrepot.env.common" . | nindent 8 }}
        - name: ENTREPOT_NAMESPACE
          value: {{ .Release.Namespace }}
        - name: ENTREPOT_RELEASE
          value: {{ .Release.Name }}
        - name: ENTREPOT_SETUP_TIMEOUT
          value: {{ .Values.setup.timeout | quote }}
        - name: ENTREPOT_DATABASE_SECRET
          value: {{ include "entrepot.secret.database" . }}
        - name: ENTREPOT_STORAGE_SECRET
          value: {{ include "entrepot.secret.storage" . }}
        - name: ENTREPOT_SIGNING_KEYS_SECRET
          value: {{ include "entrepot.secret.signingKeys" . }}
        - name: ENTREPOT_CREDENTIALS_KEY_SECRET
          value: {{ include "entrepot.secret.credentialsKey" . }}
        {{- if not .Values.token.users.existingSecret }}
        - name: ENTREPOT_USERS_SECRET
          value: {{ include "entrepot.secret.users" . }}
        {{- end }}
        # Passwords and keys are not given: it makes them, or reads them from the Secrets.
        - name: ENTREPOT_DATABASE_DSN
          value: {{ include "entrepot.dsn" (list . "entrepot_owner" .Values.database.name) | quote }}
        - name: ENTREPOT_DATABASE_ADMIN_DSN
          value: {{ include "entrepot.dsn" (list . "postgres" "postgres") | quote }}
        # A Service that has just been made swallows the first packets: a short attempt after another is quicker than a long one.
        - name: ENTREPOT_DATABASE_CONNECT_TIMEOUT
          value: 2s
        {{- include "entrepot.env.storage" . | nindent 8 }}
      resources:
        {{- toYaml .Values.setup.resources | nindent 8 }}
      volumeMounts:
        {{- include "entrepot.tmpMount" . | nindent 8 }}
  volumes:
    {{- include "entrepot.tmpVolume" . | nindent 4 }}
{{- end -}}
