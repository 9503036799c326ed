{{/*
The pod of a sync run. The operator puts the arguments in, which hold no more than the run's id, and makes the Job around it. It
is no object of the release, so a change of it touches no run that is under way.
*/}}
{{- define "entrepot.syncer.pod" -}}
metadata:
  labels:
    {{- include "entrepot.podLabels" (list . "syncer") | nindent 4 }}
spec:
  {{- include "entrepot.podSpec" . | nindent 2 }}
  automountServiceAccountToken: false
  serviceAccountName: {{ include "entrepot.fullname" . }}-syncer
  restartPolicy: Never
  containers:
    - name: syncer
      image: {{ include "entrepot.image" (list . .Values.image) }}
      {{- include "entrepot.container" . | nindent 6 }}
      env:
        {{- include "entrepot.env.common" . | nindent 8 }}
        - name: ENTREPOT_CREDENTIALS_KEY_DIR
          value: /etc/entrepot/credentials-key
        - name: ENTREPOT_UPSTREAM_DENIED_CIDRS
          value: {{ join "," .Values.upstream.deniedCIDRs | quote }}
        - name: ENTREPOT_UPSTREAM_DENIED_HOSTS
          value: {{ printf "%[1]s-registry,%[1]s-token,%[1]s-database,%[1]s-database-headless,%[1]s-storage,%[1]s-storage-headless" (include "entrepot.fullname" .) | quote }}
        {{- /* Few, because there are many of these pods; one more connection holds the run's lock. */}}
        {{- include "entrepot.env.database" (list . "syncer" 4) | nindent 8 }}
        {{- include "entrepot.env.storage" . | nindent 8 }}
        {{- include "entrepot.env.storageKeys" . | nindent 8 }}
      resources:
        {{- toYaml .Values.syncer.resources | nindent 8 }}
      volumeMounts:
        - name: credentials-key
          mountPath: /etc/entrepot/credentials-key
          readOnly: true
        {{- include "entrepot.tmpMount" . | nindent 8 }}
  volumes:
    - name: credentials-key
      secret:
        secretName: {{ include "entrepot.secret.credentialsKey" . }}
    {{- include "entrepot.tmpVolume" . | nindent 4 }}
{{- end -}}
